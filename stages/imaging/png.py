"""PNG files that hold pixels and nothing else: no time, no program name, no profile."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

_SETTINGS: Final = (
    cv2.IMWRITE_PNG_COMPRESSION,
    1,
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_RLE,
)
"""Fixed, so that equal pixels are equal bytes; fast, since DVC stores the pictures once."""


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return the PNG file of a picture; the same bytes for the same pixels.

    Args:
        pixels: uint8 [H, W, 3] RGB, or [H, W] grey.

    Raises:
        ValueError: the array is not such a picture.
    """
    grey = pixels.ndim == 2
    if pixels.dtype != np.uint8 or not (grey or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"not an RGB or grey picture: {pixels.dtype} {pixels.shape}")
    turned = pixels if grey else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(".png", turned, _SETTINGS)
    if not written:
        raise ValueError(f"OpenCV cannot encode a picture of shape {pixels.shape}")
    return bytes(data)
