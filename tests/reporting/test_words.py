"""Numbers are written the same way everywhere, and honestly."""

from __future__ import annotations

import pytest

from stages.reporting.words import (
    agreement,
    count,
    decimal,
    error,
    file_size,
    grey_levels,
    percent,
)

NBSP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0743, 1, f"7.4{NBSP}%"),
        (1.0, 0, f"100{NBSP}%"),
        (-0.021, 1, f"−2.1{NBSP}%"),
        (-0.00001, 1, f"0.0{NBSP}%"),
        (None, 1, "–"),
    ],
)
def test_percent(value: float | None, digits: int, text: str) -> None:
    """A real minus sign, no negative zero, a dash for what was not measured."""
    assert percent(value, digits) == text


def test_decimal_and_error() -> None:
    """Short at any size; None is not 0."""
    assert decimal(0.4567) == "0.46"
    assert decimal(-1234.5, 1) == "−1,234.5"
    assert decimal(None) == error(None) == "–"
    assert [error(v) for v in (0.0, 0.0421, 3.14, 280.4, 12400)] == [
        "0",
        "0.042",
        "3.1",
        "280",
        "12,400",
    ]


def test_sizes_and_counts() -> None:
    """Powers of ten, as file managers show them; one block, two blocks."""
    assert file_size(1_302_000) == f"1.30{NBSP}MB"
    assert file_size(16_400) == f"16.4{NBSP}kB"
    assert (count(1, "block"), count(2, "block")) == ("1 block", "2 blocks")
    assert (grey_levels(2500.0), grey_levels(0.25)) == ("50", "0.5")


@pytest.mark.parametrize(
    ("tau", "word"), [(0.9, "strong"), (0.5, "moderate"), (0.1, "weak"), (-0.3, "no")]
)
def test_agreement(tau: float, word: str) -> None:
    """The word never says more than the number."""
    assert agreement(tau) == word
