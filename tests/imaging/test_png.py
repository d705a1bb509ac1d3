"""Equal pixels are equal bytes, and nothing but pixels is in the file."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from stages.imaging.png import encode_png
from tests.imaging.drawings import scenery


def test_pixels_survive_to_the_bit() -> None:
    """PNG is lossless, and red stays red (OpenCV counts from blue)."""
    pixels = np.asarray(scenery(70, 50))
    read = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    assert np.array_equal(read, pixels)


def test_file_holds_pixels_only() -> None:
    """A time or program name in the file would change its hash without a reason."""
    data = encode_png(np.asarray(scenery(300, 300)))
    kinds, position = [], 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kinds.append(data[position + 4 : position + 8])
        position += 12 + length
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
    assert data == encode_png(np.asarray(scenery(300, 300)))


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), "u1")],
)
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    """Floats and alpha would be written as something else than they are."""
    with pytest.raises(ValueError, match="not an RGB or grey picture"):
        encode_png(pixels)


def test_grey_is_written_as_grey() -> None:
    """A mask has one channel, and comes back as it was."""
    pixels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), pixels)
