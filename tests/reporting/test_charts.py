"""Charts put points where the numbers are."""

from __future__ import annotations

import re

import pytest

from stages.reporting.charts import (
    Axis,
    Chart,
    Dots,
    Label,
    Line,
    Rule,
    draw_chart,
    nice_ticks,
    rolling_mean,
)
from tests.reporting.reading import read_markup


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 400.0, [0, 100, 200, 300, 400]),
        (-2.6, 9.0, [-2, 0, 2, 4, 6, 8]),
        (0.17, 0.43, [0.2, 0.25, 0.3, 0.35, 0.4]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, ticks: list[float]) -> None:
    """A person reads 0.2, not 0.1837."""
    assert nice_ticks(low, high, 5) == pytest.approx(ticks)


def test_an_axis_needs_a_length() -> None:
    """All points in one place would be a division by zero."""
    with pytest.raises(ValueError, match="no length"):
        nice_ticks(1.0, 1.0, 5)


def test_points_lie_where_the_ticks_say() -> None:
    """A dot at a tick's value is at the tick's place."""
    dots = Dots([(5.0, 0.5)], ["the <middle>"], "accent", [0.25])
    chart = Chart(
        Axis(0.0, 10.0, "step"),
        Axis(0.0, 1.0, "recovery, %", percent=True),
        "a summary & more",
        lines=[Line([(0.0, 0.0), (10.0, 1.0)], "accent")],
        dots=[dots],
        rules=[Rule(0.5, "horizontal", "bar", "dashed"), Rule(5.0, "vertical", "here", "thin")],
        labels=[Label((5.0, 0.5), "name")],
    )
    drawn = draw_chart(chart)
    elements = read_markup(drawn)
    circle = next(e for e in elements if e.tag == "circle")
    rules = [e for e in elements if e.attributes.get("class", "").startswith("rule ")]
    assert circle.attributes["cy"] == rules[0].attributes["y1"]
    assert circle.attributes["cx"] == rules[1].attributes["x1"]
    whisker = next(e for e in elements if e.attributes.get("class") == "whisker")
    assert float(whisker.attributes["y2"]) > float(circle.attributes["cy"])
    assert elements[0].attributes["aria-label"] == "a summary & more"
    assert "<middle>" not in drawn
    assert re.search(r">50</text>|>60</text>", drawn), "percent axes are labelled in per cent"
    assert drawn == draw_chart(chart)


def test_rolling_mean_smooths_and_keeps_the_length() -> None:
    """Constant stays constant; the ends use the neighbours that exist."""
    flat = [(float(x), 2.0) for x in range(5)]
    assert rolling_mean(flat, 3) == flat
    assert rolling_mean([(0, 0.0), (1, 3.0), (2, 0.0)], 3) == [(0, 1.5), (1, 1.0), (2, 1.5)]
    assert rolling_mean([], 3) == []
