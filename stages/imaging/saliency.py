"""Where the eye goes first, so that a crop keeps it."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE: Final = 64  # the scale at which X. Hou and L. Zhang look, their section 3
_MEAN_FILTER: Final = (3, 3)
_SMOOTHING: Final = 2.5  # sigma of the disk-like filter on the map, their g(x)
_TINY: Final = 1e-9


def saliency_map(image: Image.Image) -> npt.NDArray[np.float64]:
    """Return the spectral residual saliency [64, 64] of a picture, each side scaled to 64.

    X. Hou and L. Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007: the inverse
    transform of (log amplitude - its local mean) with the picture's own phase, squared and
    smoothed. A plain picture gives zeros.

    Args:
        image: mode L, RGB, RGBA or CMYK.
    """
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("RGB").convert("L"), dtype=np.float64)
    if np.ptp(grey) == 0:
        return np.zeros_like(grey)
    spectrum = cv2.dft(grey, flags=cv2.DFT_COMPLEX_OUTPUT)
    amplitude = np.hypot(spectrum[..., 0], spectrum[..., 1])
    logarithm = np.log(amplitude + _TINY)
    residual = np.exp(logarithm - cv2.blur(logarithm, _MEAN_FILTER))
    turned = spectrum * (residual / (amplitude + _TINY))[..., None]
    back = cv2.idft(turned, flags=cv2.DFT_SCALE | cv2.DFT_COMPLEX_OUTPUT)
    energy = back[..., 0] ** 2 + back[..., 1] ** 2
    return np.asarray(cv2.GaussianBlur(energy, (0, 0), _SMOOTHING), dtype=np.float64)


def best_window(profile: npt.NDArray[np.float64], length: int, window: int) -> int:
    """Return where a window along one side of a picture keeps the most saliency.

    Args:
        profile: saliency summed over the other side [n], for the whole side.
        length: the side in pixels.
        window: the window in pixels, at most `length`.

    Returns:
        Its first pixel; the one nearest to the middle where several keep equally much.
    """
    edges = np.linspace(0.0, length, len(profile) + 1)
    running = np.concatenate([[0.0], np.cumsum(profile)])
    starts = np.arange(length - window + 1)
    kept = np.interp(starts + window, edges, running) - np.interp(starts, edges, running)
    good = starts[kept >= kept.max() * (1 - _TINY) - _TINY]
    middle = (length - window) // 2
    return int(min(good, key=lambda start: (abs(int(start) - middle), int(start))))
