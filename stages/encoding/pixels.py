"""Prepared pictures and their masks as tensors at a training resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from stages.contracts.errors import DatasetError, Problem
from stages.families.latents import TOKEN_PX, training_size

_HALF_RANGE: Final = 127.5  # 0-255 becomes -1..1
_OPAQUE: Final = 255.0
_AGAIN: Final = "Run `dvc repro --force prepare`."


def read_pixels(path: Path, size_px: int) -> torch.Tensor:
    """Return the picture [1, 3, H, W] in [-1, 1], cut and resized with Lanczos if need be.

    A square one gets sides of `size_px`, one of another shape about that area (`training_size`).

    Raises:
        DatasetError: the file is not an RGB picture.
    """
    image = _resized(_opened(path, "RGB"), size_px, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return (pixels / _HALF_RANGE - 1).permute(2, 0, 1)[None]


def read_mask(path: Path, size_px: int) -> torch.Tensor:
    """Return how opaque each token of the picture is, [rows, columns] in 0 to 1.

    It is cut and resized as its picture is, then averaged over the pixels of each token.

    Raises:
        DatasetError: the file is not a grey picture.
    """
    image = _resized(_opened(path, "L"), size_px, Image.Resampling.BOX)
    opacity = torch.from_numpy(np.asarray(image, dtype=np.float32).copy()) / _OPAQUE
    rows, columns = image.height // TOKEN_PX, image.width // TOKEN_PX
    return opacity.reshape(rows, TOKEN_PX, columns, TOKEN_PX).mean(dim=(1, 3))


def _opened(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as file:
            image = file.copy()
    except (OSError, UnidentifiedImageError) as error:
        problem = Problem(str(path), f"cannot be read ({error})", _AGAIN)
        raise DatasetError("A prepared picture is damaged", [problem]) from error
    if image.mode != mode:
        problem = Problem(str(path), f"pixel format {image.mode}, expected {mode}", _AGAIN)
        raise DatasetError("A prepared picture is not as prepare writes it", [problem])
    return image


def _resized(image: Image.Image, size_px: int, filter_: Image.Resampling) -> Image.Image:
    size = training_size(*image.size, size_px)
    if image.size == size:
        return image
    return image.crop(_box(image.size, size)).resize(size, filter_)


def _box(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest centred box with the proportions of `shape`: a stretch would be learnt."""
    width = min(size[0], round(size[1] * shape[0] / shape[1]))
    height = min(size[1], round(size[0] * shape[1] / shape[0]))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return (left, top, left + width, top + height)
