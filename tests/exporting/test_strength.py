"""The recommended strength is read off the sweep."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from stages.exporting.strength import recommend_strength


def sweep(*rows: tuple[float, float, float]) -> pd.DataFrame:
    """Return (strength, recovery, lower end) between those of the base model and the whole LoRA."""
    columns = ["strength", "recovery", "recovery_low"]
    return pd.DataFrame([(0.0, 0.0, 0.0), *rows, (1.0, 1.0, 1.0)], columns=columns)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0.5, 0.6, 0.5), (0.75, 0.95, 0.91)], 0.75),
        ([(0.5, 0.95, 0.92), (0.75, 0.97, 0.95)], 0.5),
        ([(0.5, 0.6, 0.5), (0.75, 0.95, 0.89)], 1.0),  # recovers enough, but not surely
        ([(0.5, 0.95, 0.92), (0.75, 0.8, 0.7)], 1.0),  # a dip between it and 1
        ([(0.75, 0.95, math.nan)], 1.0),  # no interval is no certainty
        ([(1.25, 0.99, 0.98)], 1.0),  # never more than was trained
        ([], 1.0),
    ],
)
def test_least_strength_that_surely_does_the_job(
    rows: list[tuple[float, float, float]], expected: float
) -> None:
    """Above the bar at the lower end of its interval, and so is all between it and 1."""
    found = recommend_strength(sweep(*rows), 0.9)
    assert found.strength == expected
    assert found.because


@pytest.mark.parametrize(
    ("low", "words"),
    [
        (0.89, "the lower end of its interval is below the required 0.9 (slim.recovery)"),
        (math.nan, "there is no interval to hold against the required 0.9 (slim.recovery)"),
    ],
)
def test_why_nothing_less_than_1_is_recommended(low: float, words: str) -> None:
    """With the nearest strength that was tried, and what it lacked."""
    because = recommend_strength(sweep((0.75, 0.95, low)), 0.9).because
    assert because == f"at 0.75 the pictures recover 0.95 of the effect, {words}"
