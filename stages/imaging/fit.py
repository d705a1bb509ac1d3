"""From any shape to an exact square, with a Lanczos filter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image


def crop_box(width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Return the centre square as (left, top, right, bottom); an odd pixel falls off at the end."""
    side = min(width_px, height_px)
    left, top = (width_px - side) // 2, (height_px - side) // 2
    return (left, top, left + side, top + side)


def pad_size(width_px: int, height_px: int, size_px: int) -> tuple[int, int]:
    """Return the width and height at which the whole picture just fits in a square of `size_px`.

    Halves round up; no side falls under one pixel.
    """
    longest = max(width_px, height_px)
    return (
        max(1, (2 * width_px * size_px + longest) // (2 * longest)),
        max(1, (2 * height_px * size_px + longest) // (2 * longest)),
    )


def scale(image: Image.Image, size_px: int, fit: str) -> Image.Image:
    """Return the picture scaled for a square of `size_px`, its pixel format and profile kept.

    `crop` gives the centre square in full size; `pad` the whole picture, one side shorter.
    """
    width, height = image.size
    crop = fit == "crop"
    box = crop_box(width, height) if crop else (0, 0, width, height)
    target = (size_px, size_px) if crop else pad_size(width, height, size_px)
    if target == image.size:
        return image
    # Cropped first: with resize's own `box`, pixels outside it would bleed in at the edges.
    cropped = image if box == (0, 0, width, height) else image.crop(box)
    scaled = cropped.resize(target, Image.Resampling.LANCZOS)
    scaled.info = image.info
    return scaled


def place(image: Image.Image, size_px: int, background: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the RGB picture centred on a square of the background colour.

    Args:
        image: mode RGB, no side longer than `size_px`.
        size_px: side of the square.
        background: sRGB colour, three values 0-255.

    Returns:
        uint8 [size_px, size_px, 3], RGB.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    if (height, width) == (size_px, size_px):
        return pixels
    square = np.empty((size_px, size_px, 3), np.uint8)
    square[:] = np.array(background, np.uint8)
    top, left = (size_px - height) // 2, (size_px - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
