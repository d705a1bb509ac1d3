"""A parallel-coordinates plot as one SVG: an axis per param and metric, a line per experiment.

Drawn here because DVC draws none any more, and its other plots load their scripts from the
network: this is one file that needs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

_AXIS_GAP_PX: Final = 150
_MARGIN_PX: Final = 90
_TOP_PX, _HEIGHT_PX, _FOOT_PX = 60, 320, 30
_TICKS: Final = 5
_LOG_RATIO: Final = 50.0
"""From this ratio of largest to smallest value on, an axis is logarithmic."""
_LOW, _HIGH = (68, 84, 160), (232, 142, 34)
_STYLE: Final = """\
text{font:12px sans-serif;fill:#222}.name{font-weight:600}.axis{stroke:#888}
path{fill:none;stroke-width:1.8;stroke-opacity:.75}path:hover{stroke-width:5;stroke-opacity:1}"""


@dataclass(frozen=True)
class Axis:
    """A param or metric: positions of its values from 0 (bottom) to 1 (top), and ticks there."""

    name: str
    positions: dict[str, float]
    ticks: tuple[tuple[float, str], ...]


def draw_lines(
    names: Sequence[str], rows: Mapping[str, Mapping[str, Any]], coloured_by: str
) -> str:
    """Return the SVG.

    Args:
        names: the axes from left to right, keys of every row.
        rows: experiment -> its values.
        coloured_by: the axis whose position gives a line its colour, blue (low) to orange (high).
    """
    axes = [make_axis(name, [row[name] for row in rows.values()]) for name in names]
    width = 2 * _MARGIN_PX + _AXIS_GAP_PX * (len(axes) - 1)
    height = _TOP_PX + _HEIGHT_PX + _FOOT_PX
    colours = next(axis for axis in axes if axis.name == coloured_by)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><style>{_STYLE}</style>'
    ]
    for experiment, row in rows.items():
        points = [
            f"{_MARGIN_PX + column * _AXIS_GAP_PX},{_y_px(axis.positions[_key(row[axis.name])]):g}"
            for column, axis in enumerate(axes)
        ]
        colour = _colour(colours.positions[_key(row[coloured_by])])
        title = "\n".join([experiment, *(f"{name}: {shown(row[name])}" for name in names)])
        parts.append(
            f'<path d="M{" L".join(points)}" stroke="{colour}">'
            f"<title>{escape(title)}</title></path>"
        )
    for column, axis in enumerate(axes):
        parts += _axis_parts(axis, _MARGIN_PX + column * _AXIS_GAP_PX, column % 2)
    return "\n".join([*parts, "</svg>\n"])


def make_axis(name: str, values: Sequence[Any]) -> Axis:
    """Return the axis of some values: numbers by size, anything else in the order of appearance."""
    keys = list(dict.fromkeys(map(_key, values)))
    numbers = [value for value in values if type(value) in (int, float) and math.isfinite(value)]
    if len(numbers) < len(values):
        places = {key: (i + 0.5) / len(keys) for i, key in enumerate(keys)}
        words = dict(zip(map(_key, values), map(shown, values), strict=True))
        return Axis(name, places, tuple((places[key], words[key]) for key in keys))
    low, high = min(numbers), max(numbers)
    logarithmic = low > 0 and high / low >= _LOG_RATIO
    scale = math.log if logarithmic else float
    span = scale(high) - scale(low) or 1.0
    places = {_key(value): (scale(value) - scale(low)) / span for value in numbers}
    if low == high:
        return Axis(name, dict.fromkeys(places, 0.5), ((0.5, shown(low)),))
    if len(keys) <= _TICKS:
        return Axis(name, places, tuple((places[_key(v)], shown(v)) for v in sorted(set(numbers))))
    fractions = [tick / (_TICKS - 1) for tick in range(_TICKS)]
    marks = [scale(low) + fraction * span for fraction in fractions]
    ticks = [shown(math.exp(mark) if logarithmic else mark) for mark in marks]
    return Axis(name, places, tuple(zip(fractions, ticks, strict=True)))


def shown(value: object) -> str:
    """Return a value as tables and ticks show it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _axis_parts(axis: Axis, x_px: int, odd: int) -> list[str]:
    """Return the line, the ticks and the name; names of neighbours stand at two heights."""
    name_y_px = _TOP_PX - 34 + 16 * odd
    parts = [
        f'<line class="axis" x1="{x_px}" x2="{x_px}" y1="{_TOP_PX}" y2="{_TOP_PX + _HEIGHT_PX}"/>',
        f'<text class="name" text-anchor="middle" x="{x_px}" y="{name_y_px}">'
        f"{escape(axis.name)}</text>",
    ]
    parts += [
        f'<text x="{x_px + 6}" y="{_y_px(place) + 4:g}">{escape(word)}</text>'
        for place, word in axis.ticks
    ]
    return parts


def _key(value: object) -> str:
    return json.dumps(value)


def _y_px(place: float) -> float:
    return round(_TOP_PX + (1 - place) * _HEIGHT_PX, 1)


def _colour(place: float) -> str:
    mixed = (round(a + (b - a) * place) for a, b in zip(_LOW, _HIGH, strict=True))
    return f"rgb({','.join(map(str, mixed))})"
