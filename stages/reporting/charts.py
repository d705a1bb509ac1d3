"""Small charts as SVG: axes, lines, dots with whiskers, rules. Colours come from the page.

A chart is data with a template; the same data gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from markupsafe import Markup

from stages.reporting.templating import render

Point = tuple[float, float]

_WIDE: Final = (720, 340)
_NARROW: Final = (380, 320)  # a phone shows it at its own size, letters included
_LEFT: Final = 58
_RIGHT: Final = 16
_TOP: Final = 16
_BOTTOM: Final = 48
_TICKS: Final = 5
_END: Final = 0.8  # of the width: words of points beyond it stand on their left


@dataclass(frozen=True)
class Axis:
    """A linear axis: its ends in data units, its title, and how its ticks are written."""

    low: float
    high: float
    title: str
    percent: bool = False

    def ticks(self) -> list[float]:
        """Return round values inside the axis, about five."""
        return nice_ticks(self.low, self.high, _TICKS)

    def label(self, value: float) -> str:
        """Return a tick's text."""
        if self.percent:
            return f"{round(100 * value, 6):g}"
        return f"{round(value, 9):,g}" if abs(value) < 10_000 else f"{value / 1000:g}k"


@dataclass(frozen=True)
class Line:
    """A line through points; `style` is a class of the style sheet."""

    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class Dots:
    """Points with a text each, and, where `lows` is given, a whisker down to it."""

    points: Sequence[Point]
    titles: Sequence[str]
    style: str
    lows: Sequence[float | None] = ()


@dataclass(frozen=True)
class Rule:
    """A straight line across the chart at one value, with a label at its end."""

    at: float
    direction: Literal["horizontal", "vertical"]
    label: str
    style: str
    label_at: Literal["start", "end"] = "end"


@dataclass(frozen=True)
class Label:
    """A word next to a point."""

    point: Point
    text: str


@dataclass(frozen=True)
class Chart:
    """Everything in one chart; `summary` says what it shows, for people who cannot see it."""

    x: Axis
    y: Axis
    summary: str
    lines: Sequence[Line] = ()
    dots: Sequence[Dots] = ()
    rules: Sequence[Rule] = ()
    labels: Sequence[Label] = ()


def draw_chart(chart: Chart, size: tuple[int, int] = _WIDE) -> Markup:
    """Return the chart as an SVG element of so many units in width and height."""
    width, height = size
    return render(
        "chart.svg",
        chart=chart,
        width=width,
        height=height,
        left=_LEFT,
        right=width - _RIGHT,
        top=_TOP,
        bottom=height - _BOTTOM,
        turn=width * _END,
        across=lambda value: _place(value, chart.x, _LEFT, width - _RIGHT),
        up=lambda value: _place(value, chart.y, height - _BOTTOM, _TOP),
    )


def draw_charts(chart: Chart) -> Markup:
    """Return the chart twice: for a page, and narrow for a phone; one of them is shown."""
    return render("charts.html", wide=draw_chart(chart), narrow=draw_chart(chart, _NARROW))


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten within [low, high], about so many.

    Raises:
        ValueError: the range is empty.
    """
    if not high > low:
        raise ValueError(f"an axis from {low} to {high} has no length")
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [power * factor for factor in (1, 2, 5, 10)]
    step = min(steps, key=lambda size: abs(math.log(size / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def rolling_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Return the points with each y replaced by the mean of its up to `window` neighbours."""
    half = window // 2
    heights = [y for _, y in points]
    means = []
    for index, (x, _) in enumerate(points):
        near = heights[max(0, index - half) : index + half + 1]
        means.append((x, sum(near) / len(near)))
    return means


def _place(value: float, axis: Axis, start: float, end: float) -> float:
    fraction = (value - axis.low) / (axis.high - axis.low)
    return round(start + fraction * (end - start), 1)
