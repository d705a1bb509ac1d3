"""The map's colours can be told apart without colour vision, and its letters can be read."""

from __future__ import annotations

import pytest

from stages.reporting.block_map import STEPS
from stages.reporting.palette import DARK, LIGHT


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_shares_differ_in_lightness_alone(palette: dict[str, str]) -> None:
    """Each step is clearly darker, or on a dark page brighter, than the one before."""
    steps = [luminance(palette[f"s{i}"]) for i in range(STEPS + 1)]
    assert steps == sorted(steps, reverse=palette is LIGHT)
    assert all(contrast(palette[f"s{i}"], palette[f"s{i + 1}"]) > 1.08 for i in range(STEPS))


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_letters_can_be_read_on_every_step(palette: dict[str, str]) -> None:
    """Shares are written on the cells: WCAG AA asks for 4.5."""
    cells = [f"s{step}" for step in range(STEPS + 1)] + ["n1", "n2", "n3"]
    for cell in cells:
        deep = cell in {"s5", "s6", "s7", "s8"}
        middle = cell in {"s3", "s4", "n2", "n3"}
        share = palette["ink-deep" if deep else "ink"]
        index = palette["muted-deep" if deep else "muted-middle" if middle else "muted"]
        assert contrast(palette[cell], share) >= 4.5, cell
        assert contrast(palette[cell], index) >= 4.5, cell


def test_both_palettes_have_the_same_names() -> None:
    """The style sheet pairs them."""
    assert set(LIGHT) == set(DARK)
