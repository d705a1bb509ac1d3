"""Numbers and findings in words that a person can check against the tables."""

from __future__ import annotations

import math
from typing import Final

_MEGABYTE: Final = 1_000_000
_KILOBYTE: Final = 1_000
_STRONG_TAU: Final = 0.7
_MODERATE_TAU: Final = 0.4

MINUS: Final = "\N{MINUS SIGN}"
NO_BREAK: Final = "\N{NO-BREAK SPACE}"
DASH: Final = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage: 0.0743 is `7.4 %`; a dash for None."""
    if value is None:
        return DASH
    return f"{decimal(100.0 * value, digits)}{NO_BREAK}%"


def decimal(value: float | None, digits: int = 2) -> str:
    """Return a number with a real minus sign and no negative zero; a dash for None."""
    if value is None:
        return DASH
    text = f"{value:,.{digits}f}"
    if not text.strip("-0.,"):
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def error(value: float | None) -> str:
    """Return an MSE, short at any size: 0, 0.042, 3.1, 280, 12,400; a dash for None."""
    if value is None:
        return DASH
    if value == 0.0:
        return "0"
    if value >= 100.0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1.0 else f"{value:.2g}"


def file_size(size_bytes: float) -> str:
    """Return a file size in kB or MB (powers of ten)."""
    if size_bytes >= _MEGABYTE:
        return f"{size_bytes / _MEGABYTE:,.2f}{NO_BREAK}MB"
    return f"{size_bytes / _KILOBYTE:,.1f}{NO_BREAK}kB"


def grey_levels(mse: float) -> str:
    """Return the root of an MSE: the typical change of one channel of one pixel, of 255."""
    return f"{math.sqrt(mse):.0f}" if mse >= 1.0 else f"{math.sqrt(mse):.1g}"


def count(number: int, noun: str) -> str:
    """Return `1 block`, `2 blocks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_words(number: int) -> str:
    """Return `two` to `nine` as a word and any other number in figures."""
    words = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number - 2] if 2 <= number <= 9 else f"{number:,}"


def agreement(tau: float) -> str:
    """Return in one word how well two rankings agree (Kendall's tau-b)."""
    if tau >= _STRONG_TAU:
        return "strong"
    if tau >= _MODERATE_TAU:
        return "moderate"
    return "weak" if tau > 0.0 else "no"


def interval(low: float | None, high: float | None) -> str:
    """Return `3.1 to 5.2 %` for two fractions; empty where there is no interval."""
    if low is None or high is None:
        return ""
    return f"{decimal(100 * low, 1)} to {percent(high)}"
