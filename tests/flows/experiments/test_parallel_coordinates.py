"""The plot is a picture that needs nothing else, with each value where its axis has it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from flows.experiments.parallel_coordinates import draw_lines, make_axis

NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_one_line_per_experiment_through_all_axes() -> None:
    """Well-formed, whatever the values look like; colours tell low from high."""
    rows = {
        "a": {"train.rank": 4, "caption.prefix": "<b>&", "loss": 0.25},
        "b": {"train.rank": 8, "caption.prefix": "", "loss": 0.5},
    }
    svg = ElementTree.fromstring(draw_lines(["train.rank", "caption.prefix", "loss"], rows, "loss"))
    lines = svg.findall(f"{NAMESPACE}path")
    assert [line.attrib["d"].count("L") for line in lines] == [2, 2]
    assert len({line.attrib["stroke"] for line in lines}) == 2
    titles = [line.findtext(f"{NAMESPACE}title") for line in lines]
    assert titles[0] == "a\ntrain.rank: 4\ncaption.prefix: <b>&\nloss: 0.25"
    assert len(svg.findall(f"{NAMESPACE}line")) == 3


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        ([1, 3, 2], [0, 1, 0.5]),
        ([0.001, 0.1, 0.01], [0, 1, 0.5]),  # a hundredfold range: logarithmic
        ([2, 2], [0.5]),
        (["all", None], [0.25, 0.75]),
        ([[0], [1]], [0.25, 0.75]),
        ([True, False], [0.25, 0.75]),
    ],
)
def test_axis_places_values(values: list[object], positions: list[float]) -> None:
    """Numbers by size, from the bottom to the top; words in the order in which they come."""
    axis = make_axis("axis", values)
    assert list(axis.positions.values()) == pytest.approx(positions)


def test_many_values_get_few_ticks() -> None:
    """Ticks of a crowded axis would lie on each other."""
    axis = make_axis("axis", [float(value) for value in range(101)])
    assert axis.ticks == ((0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1.0, "100"))
