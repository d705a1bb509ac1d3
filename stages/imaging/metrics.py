"""How far two pictures are apart, and how much of a LoRA's effect one of its parts brings.

Pictures are RGB uint8 [height, width, 3].
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

LARGEST_MSE: Final = 255.0**2
"""MSE of a black and a white picture."""


def mse(a: Picture, b: Picture) -> float:
    """Return the mean squared difference of two pictures, 0 to 65025.

    In float64 over pixels and channels: uint8 arithmetic wraps around, and float32 sums lose
    digits on large pictures.

    Raises:
        ValueError: the two differ in shape, or are not uint8.
    """
    require_comparable(a, b)
    distance = a.astype(np.float64) - b.astype(np.float64)
    return float(np.mean(distance * distance))


def recovery(variant: Picture, none: Picture, full: Picture) -> float:
    """Return how much of the way from `none` to `full` the picture `variant` goes, at most 1.

    1 - MSE(variant, full) / MSE(none, full): 1 is the full LoRA's picture, 0 is as far from it
    as the base model's, negative is farther.

    Raises:
        ValueError: the pictures differ in shape, or `none` equals `full`.
    """
    return recovery_of_errors(mse(variant, full), mse(none, full))


def recovery_of_errors(variant_to_full: float, none_to_full: float) -> float:
    """Return the recovery that belongs to two measured MSEs.

    Raises:
        ValueError: `none_to_full` is 0, so that there is nothing to recover.
    """
    if none_to_full <= 0.0:
        raise ValueError("the LoRA changes nothing in this picture: recovery is not defined")
    return 1.0 - variant_to_full / none_to_full


def require_comparable(a: Picture, b: Picture) -> None:
    """Check that two pictures can be compared pixel by pixel.

    Raises:
        ValueError: the two differ in shape, or are not uint8 [height, width, 3].
    """
    for picture in (a, b):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"expected RGB uint8 [height, width, 3], got {picture.dtype} {picture.shape}"
            )
    if a.shape != b.shape:
        raise ValueError(f"pictures of different size: {a.shape} and {b.shape}")
