"""Pictures that the tests draw: never the same twice by accident, always the same on purpose."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def scenery(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a smooth RGB picture with detail, such as a camera gives; `seed` is the subject."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for octave, cells in enumerate((3, 6, 12, 24, 48)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(smooth, dtype=np.float64) - 128.0) * 0.6**octave
    total += rng.integers(-4, 5, total.shape)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def bomb(path: Path, width: int, height: int) -> None:
    """Write a PNG of a few hundred bytes whose header promises `width` x `height` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
