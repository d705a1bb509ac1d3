"""Pictures that travel inside the page: WebP thumbnails as data URIs, equal bytes every time."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

FULL_PX: Final = 1024
"""Pictures that the page shows in full are not shrunk up to this side: FLUX.1's own size."""

PICTURE_QUALITY: Final = 84
MAP_QUALITY: Final = 60  # difference maps are smooth, and read as colours, not as details
_EFFORT: Final = 4  # WebP's own default: 6 halves the speed for about 2 % of the bytes


def thumbnail(path: Path, longest_px: int) -> str:
    """Return the picture in a file as a WebP data URI, shrunk to `longest_px`, never enlarged."""
    with Image.open(path) as image:
        return picture_uri(image.convert("RGB"), longest_px)


def picture_uri(image: Image.Image, longest_px: int) -> str:
    """Return an RGB picture as a WebP data URI, shrunk to `longest_px`, never enlarged."""
    return _encode(image, longest_px, PICTURE_QUALITY)


def full_pictures(paths: Sequence[Path], longest_px: int, room: int) -> list[str]:
    """Return pictures as WebP data URIs, in full (FULL_PX) while they fit into `room` characters.

    The others are shrunk to `longest_px`, so that many prompts do not make a page too large.
    """
    pictures = []
    for path in paths:
        picture = thumbnail(path, FULL_PX)
        if len(picture) > room:
            picture = thumbnail(path, longest_px)
        room -= len(picture)
        pictures.append(picture)
    return pictures


def map_thumbnail(levels: npt.NDArray[np.uint8], longest_px: int) -> str:
    """Return a grey map, uint8 [height, width], as a WebP data URI; the page gives it colours."""
    return _encode(Image.fromarray(levels).convert("RGB"), longest_px, MAP_QUALITY)


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _encode(image: Image.Image, longest_px: int, quality: int) -> str:
    longest = max(image.size)
    if longest > longest_px:
        scaled = tuple(max(1, round(side * longest_px / longest)) for side in image.size)
        image = image.resize((scaled[0], scaled[1]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=_EFFORT)
    return data_uri(buffer.getvalue(), "image/webp")
