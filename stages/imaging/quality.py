"""Numbers on one picture that say whether it is worth training on.

Pictures are RGB uint8 [height, width, 3].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from stages.imaging.metrics import Picture

_BRIGHTEST_SHARE: Final = 99.0  # percentile: a street lamp does not light up a night
_BAR_SPREAD: Final = 6.0  # grey levels within a bar: what JPEG leaves of one colour
_EDGE_STEP: Final = 24.0  # grey levels between a bar and the picture beside it
_EDGE_SHARE: Final = 0.75  # of the bar's length that has such a step: a straight, whole edge
_EDGE_REACH: Final = 3  # lines over which scaling smears an edge


@dataclass(frozen=True)
class Quality:
    """What was measured on a prepared picture.

    `blur` as in `blur()`; `brightest` the 99th percentile of grey, 0-255; `spread` the largest
    standard deviation of the three channels; `bars` the share of the height (or width) that bars
    of one colour at two opposite edges take together.
    """

    blur: float
    brightest: float
    spread: float
    bars: float


def measure(pixels: Picture, content: Picture) -> Quality:
    """Return the numbers of a prepared picture; `content` is it without padding of ours."""
    grey = cv2.cvtColor(content, cv2.COLOR_RGB2GRAY)
    _, deviations = cv2.meanStdDev(content)
    return Quality(
        blur=blur(pixels),
        brightest=float(np.percentile(grey, _BRIGHTEST_SHARE)),
        spread=float(deviations.max()),
        bars=bars(content),
    )


def blur(pixels: Picture) -> float:
    """Return the variance of the Laplacian of the picture in grey 0-255; low is blurred.

    J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000. The
    Laplacian is the 4-neighbour one.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def bars(pixels: Picture) -> float:
    """Return the share of the height or width that is bars (letterbox, frame), 0 for none.

    A bar is a run of lines of one colour from the edge inwards, with a straight edge to a picture
    that differs along nearly all of it: a plain studio background is no bar, and neither is the
    first of many stripes. Both of two opposite edges must have one.
    """
    heights = _bar(pixels), _bar(pixels[::-1])
    sideways = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    widths = _bar(sideways), _bar(sideways[::-1])
    shares = [
        sum(pair) / length
        for pair, length in ((heights, pixels.shape[0]), (widths, pixels.shape[1]))
        if min(pair) > 0
    ]
    return max(shares, default=0.0)


def _bar(pixels: Picture) -> int:
    """Return how many lines from the top on are a bar."""
    colour = pixels[0].reshape(-1, 3).mean(axis=0)
    # Line by line: most pictures have no bar, and their first line says so.
    thickness = 0
    for line in pixels[: len(pixels) // 2]:
        if np.abs(line - colour).max() > _BAR_SPREAD:
            break
        thickness += 1
    if not thickness:
        return 0
    beyond = thickness + _EDGE_REACH
    if _alike(pixels[beyond : beyond + 1], colour).max() > 1 - _EDGE_SHARE:
        return 0
    # Lines of the bar's colour between the two bars: a pattern of the picture's own.
    inner = pixels[beyond : len(pixels) - beyond]
    return 0 if _alike(inner, colour).max(initial=0.0) > _EDGE_SHARE else thickness


def _alike(lines: Picture, colour: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return of each line the share of pixels that have the colour, a step at most away."""
    levels = np.round(colour)
    low, high = (np.clip(levels + step, 0, 255) for step in (-_EDGE_STEP, _EDGE_STEP))
    return np.asarray(((lines >= low) & (lines <= high)).all(axis=2).mean(axis=1))
