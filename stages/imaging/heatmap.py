"""Where two pictures differ, in colour: one scale for all blocks, so that maps can be compared.

Pictures are RGB uint8 [height, width, 3]; a difference is float32 [height, width], the absolute
difference averaged over the channels, 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from stages.imaging.lettering import fit_text, text_width, write_boxed, write_text
from stages.imaging.metrics import Picture, mse, require_comparable

Difference: TypeAlias = npt.NDArray[np.float32]

COLOUR_MAPS: Final[dict[str, int]] = {
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
}
"""Names as in params evaluate.colour_map."""

SMALLEST_DRAWN_PX: Final = 256
"""Maps of smaller pictures are enlarged to at least this, so that their letters can be read."""

_PEAK_QUANTILE: Final = 0.995  # a few extreme pixels must not darken every map
_SMALLEST_TOP: Final = 1.0  # below one grey level there is only rounding
_FOOTER: Final = 0.11  # of the side: the strip with the colour scale
_INK: Final = (236, 236, 232)
_GROUND: Final = (18, 18, 22)


@dataclass(frozen=True)
class HeatmapStyle:
    """The colour map's name, how far it covers the picture beneath, 0 to 1, and words or none."""

    colour_map: str
    opacity: float
    text: bool


@dataclass(frozen=True)
class Scale:
    """The difference shown in the last colour, 0 to 255; `shared` by all maps of a run or not."""

    top: float
    shared: bool


def difference(a: Picture, b: Picture) -> Difference:
    """Return the absolute difference of two pictures, averaged over the channels.

    Raises:
        ValueError: the two differ in shape, or are not uint8.
    """
    require_comparable(a, b)
    gap = np.abs(a.astype(np.float32) - b.astype(np.float32))
    result: Difference = gap.mean(axis=2, dtype=np.float32)
    return result


def peak(item: Difference) -> float:
    """Return the difference, 0 to 255, that all but the 0.5 % largest pixels stay below."""
    return float(np.quantile(item, _PEAK_QUANTILE))


def shared_scale(peaks: Sequence[float]) -> Scale:
    """Return one scale for all maps, on which the strongest of them just reaches the last colour.

    Raises:
        ValueError: there are no peaks.
    """
    if not peaks:
        raise ValueError("a shared scale needs at least one picture")
    return Scale(max(_SMALLEST_TOP, *peaks), shared=True)


def own_scale(own_peak: float) -> Scale:
    """Return the scale of one map alone, on which its own peak has the last colour."""
    return Scale(max(_SMALLEST_TOP, own_peak), shared=False)


def colourise(item: Difference, scale: Scale, colour_map: str) -> Picture:
    """Return a difference in the colours of an OpenCV colour map."""
    levels = scale_levels(item, scale)
    coloured: Picture = cv2.applyColorMap(levels, COLOUR_MAPS[colour_map])[:, :, ::-1]
    return np.ascontiguousarray(coloured)


def scale_levels(item: Difference, scale: Scale) -> npt.NDArray[np.uint8]:
    """Return a difference as uint8 [height, width]: 255 is the scale's top and all above it."""
    levels = np.clip(item / np.float32(scale.top) * 255.0, 0.0, 255.0)
    return np.asarray(levels.round(), dtype=np.uint8)


def colour_ramp(colour_map: str, steps: int) -> Picture:
    """Return `steps` colours [steps, 3] from the least to the largest difference."""
    levels = np.linspace(0, 255, steps).round().astype(np.uint8)[None, :]
    ramp: Picture = cv2.applyColorMap(levels, COLOUR_MAPS[colour_map])[0, :, ::-1]
    return np.ascontiguousarray(ramp)


def overlay(picture: Picture, item: Difference, scale: Scale, style: HeatmapStyle) -> Picture:
    """Return the picture under its coloured difference, blended as `style.opacity` says."""
    coloured = colourise(item, scale, style.colour_map).astype(np.float32)
    mixed = picture * np.float32(1.0 - style.opacity) + coloured * np.float32(style.opacity)
    return np.clip(mixed.round(), 0, 255).astype(np.uint8)


def draw_heatmap(
    label: str, picture: Picture, reference: Picture, scale: Scale, style: HeatmapStyle
) -> Picture:
    """Return the finished map: picture under difference, scale beneath.

    With text the MSE stands in the upper left corner and `label` in the lower left one. Small
    pictures are enlarged by a whole factor to at least 256 pixels first. The result is as wide as
    that and a ninth higher.

    Raises:
        ValueError: `picture` and `reference` differ in shape, or are not uint8.
    """
    item = difference(picture, reference)
    factor = math.ceil(SMALLEST_DRAWN_PX / min(item.shape))
    size = (item.shape[1] * factor, item.shape[0] * factor)
    large = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    large_item = cv2.resize(item, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    blended = overlay(large, large_item, scale, style)
    words = (f"MSE {format_error(mse(picture, reference))}", label) if style.text else None
    return _annotated(blended, words, scale, style.colour_map)


def draw_scale(width_px: int, height_px: int, scale: Scale, colour_map: str) -> Picture:
    """Return the colour scale as a strip: 0, the colours, and the difference of the last one."""
    strip = Image.new("RGB", (width_px, height_px), _GROUND)
    draw = ImageDraw.Draw(strip)
    size = max(8, round(height_px * 0.46))
    margin = size // 2
    top = (height_px - size) // 2 - size // 8
    # Beyond the top of a shared scale there are differences too; they get the last colour.
    last = f"{scale.top:.0f}+" if scale.shared else f"{scale.top:.0f} (own scale)"
    write_text(draw, (margin, top), "0", size, _INK)
    right = width_px - margin - text_width(last, size)
    write_text(draw, (right, top), last, size, _INK)
    start = margin + text_width("0", size) + margin
    length = max(1, right - margin - start)
    ramp = colour_ramp(colour_map, length)
    bar = np.repeat(ramp[None, :, :], max(1, height_px // 3), axis=0)
    strip.paste(Image.fromarray(bar), (start, (height_px - bar.shape[0]) // 2))
    return np.asarray(strip, dtype=np.uint8)


def _annotated(
    blended: Picture, words: tuple[str, str] | None, scale: Scale, colour_map: str
) -> Picture:
    """Return the map with its scale beneath, and words in its upper and lower left corners."""
    height, width = blended.shape[:2]
    footer = draw_scale(width, round(height * _FOOTER), scale, colour_map)
    canvas = Image.fromarray(np.concatenate([blended, footer]))
    size = max(12, round(height * 0.055))
    if words is not None:
        draw = ImageDraw.Draw(canvas)
        upper, lower = (fit_text(text, size, width - 2 * size) for text in words)
        write_boxed(draw, (size // 2, size // 2), upper, size)
        write_boxed(draw, (size // 2, height - 2 * size - size // 2), lower, size)
    return np.asarray(canvas, dtype=np.uint8)


def format_error(error: float) -> str:
    """Return an MSE in a form that is short at any size: 0.042, 3.1, 280, 12,400."""
    if error >= 100.0:
        return f"{error:,.0f}"
    return f"{error:.1f}" if error >= 1.0 else f"{error:.2g}"
