"""Two more ways to compare pictures: structure, and direction on the way to the full LoRA.

Pictures are RGB uint8 [height, width, 3].
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from stages.imaging.metrics import Picture, require_comparable

_WINDOW_PX: Final = 11
_SIGMA_PX: Final = 1.5
_K1: Final = 0.01
_K2: Final = 0.03
_RANGE: Final = 255.0

_Plane = npt.NDArray[np.float64]


def ssim(a: Picture, b: Picture) -> float:
    """Return the structural similarity of two pictures, -1 to 1, mean over pixels and channels.

    Z. Wang et al., "Image quality assessment: from error visibility to structural similarity",
    IEEE Transactions on Image Processing 13(4), 2004, equation 13 with its own constants: an 11 x
    11 Gaussian window of 1.5 pixels; where it would leave the picture there is no value.

    Raises:
        ValueError: the two differ in shape, are not uint8, or are smaller than the window.
    """
    require_comparable(a, b)
    if min(a.shape[:2]) < _WINDOW_PX:
        raise ValueError(f"pictures of at least {_WINDOW_PX} pixels are needed, got {a.shape}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x * mean_x
    var_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    likeness = (2.0 * mean_x * mean_y + c1) * (2.0 * covariance + c2)
    size = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    return float(np.mean(likeness / size))


def direction(variant: Picture, none: Picture, full: Picture) -> float:
    """Return how far `variant` goes along the way from `none` to `full`; 1 at `full`, 0 at `none`.

    <variant - none, full - none> / |full - none|^2. Unlike recovery it is not lowered by what the
    variant changes besides: a high direction with a low recovery is a block that does the right
    thing and something else, too.

    Raises:
        ValueError: the pictures differ in shape, or `none` equals `full`.
    """
    require_comparable(variant, none)
    require_comparable(none, full)
    start = none.astype(np.float64)
    way = full.astype(np.float64) - start
    length = float(np.sum(way * way))
    if length == 0.0:
        raise ValueError("the LoRA changes nothing in this picture: there is no direction")
    return float(np.sum((variant.astype(np.float64) - start) * way)) / length


def _blur(values: _Plane) -> _Plane:
    """Return the local means [height - 10, width - 10, 3]."""
    blurred = cv2.GaussianBlur(values, (_WINDOW_PX, _WINDOW_PX), _SIGMA_PX)
    edge = _WINDOW_PX // 2
    inner: _Plane = blurred[edge:-edge, edge:-edge]
    return inner
