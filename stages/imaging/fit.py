"""From any shape to an exact square or bucket, with a Lanczos filter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.imaging.saliency import best_window, saliency_map

BUCKET_STEP_PX: Final = 64
Size = tuple[int, int]
Box = tuple[int, int, int, int]


def crop_box(width_px: int, height_px: int, shape: Size = (1, 1)) -> Box:
    """Return the largest centred box of the proportions of `shape`: left, top, right, bottom.

    An odd pixel falls off at the end.
    """
    width, height = _crop_size(width_px, height_px, shape)
    left, top = (width_px - width) // 2, (height_px - height) // 2
    return (left, top, left + width, top + height)


def salient_box(image: Image.Image, shape: Size) -> Box:
    """Return the largest box of the proportions of `shape` that keeps the most saliency."""
    width, height = _crop_size(*image.size, shape)
    salience = saliency_map(image)
    left = best_window(salience.sum(axis=0), image.width, width)
    top = best_window(salience.sum(axis=1), image.height, height)
    return (left, top, left + width, top + height)


def pad_size(width_px: int, height_px: int, size_px: int) -> Size:
    """Return the width and height at which the whole picture just fits in a square of `size_px`.

    Halves round up; no side falls under one pixel.
    """
    longest = max(width_px, height_px)
    return (
        max(1, (2 * width_px * size_px + longest) // (2 * longest)),
        max(1, (2 * height_px * size_px + longest) // (2 * longest)),
    )


def bucket_size(width_px: int, height_px: int, size_px: int) -> Size:
    """Return the bucket for a picture: sides in multiples of 64, about size_px^2 pixels.

    For each width the height that comes nearest to the area; of those the one whose proportions
    are nearest to the picture's (as a ratio), the squarer one of two equally near.
    """
    step = BUCKET_STEP_PX
    wanted = math.log(width_px / height_px)
    rounds = round(size_px * size_px / step / step)
    widths = range(1, rounds + 1)
    sizes = {(width * step, max(1, round(rounds / width)) * step) for width in widths}
    sizes |= {(height, width) for width, height in sizes}
    return min(
        sizes,
        key=lambda size: (
            round(abs(math.log(size[0] / size[1]) - wanted), 9),
            abs(size[0] - size[1]),
            size,
        ),
    )


def target_size(width_px: int, height_px: int, size_px: int, fit: str) -> Size:
    """Return the size that `fit` (crop, pad or bucket) gives the content of a picture."""
    if fit == "pad":
        return pad_size(width_px, height_px, size_px)
    return bucket_size(width_px, height_px, size_px) if fit == "bucket" else (size_px, size_px)


def upscale_factor(width_px: int, height_px: int, size_px: int, fit: str) -> float:
    """Return by how much `scale` enlarges a picture of this size; 1 or less where it does not."""
    width, height = target_size(width_px, height_px, size_px, fit)
    if fit == "pad":
        return size_px / max(width_px, height_px)
    return max(width / width_px, height / height_px)


def scale(image: Image.Image, size_px: int, fit: str, focus: str) -> Image.Image:
    """Return the picture scaled for `size_px`, its pixel format and profile kept.

    `crop` gives a square and `bucket` the nearest bucket, both in full size, cut out around the
    `focus` (centre or saliency); `pad` gives the whole picture, one side shorter.
    """
    target = target_size(*image.size, size_px, fit)
    if fit == "pad":
        box = (0, 0, *image.size)
    else:
        box = salient_box(image, target) if focus == "saliency" else crop_box(*image.size, target)
    if target == image.size:
        return image
    # Cropped first: with resize's own `box`, pixels outside it would bleed in at the edges.
    cropped = image if box == (0, 0, *image.size) else image.crop(box)
    scaled = cropped.resize(target, Image.Resampling.LANCZOS)
    scaled.info = image.info
    return scaled


def place(image: Image.Image, size: Size, background: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the picture centred on a ground of the background colour.

    Args:
        image: mode RGB or L, no side longer than that of `size`.
        size: width and height of the ground.
        background: of the ground, 0-255: three values (sRGB), or one.

    Returns:
        uint8 [height, width, 3], RGB, or [height, width].
    """
    pixels = np.asarray(image)
    if image.size == size:
        return pixels
    height, width = pixels.shape[:2]
    ground = np.empty((size[1], size[0], *pixels.shape[2:]), np.uint8)
    ground[:] = np.array(background, np.uint8)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    ground[top : top + height, left : left + width] = pixels
    return ground


def _crop_size(width_px: int, height_px: int, shape: Size) -> Size:
    """Return the size of the largest box with the proportions of `shape`; halves round down."""
    if width_px * shape[1] >= height_px * shape[0]:
        return max(1, height_px * shape[0] // shape[1]), height_px
    return width_px, max(1, width_px * shape[1] // shape[0])
