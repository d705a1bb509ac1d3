"""Names in error messages."""

from __future__ import annotations

from stages.adapters.listing import list_names


def test_a_short_list_is_sorted_and_whole() -> None:
    """A message names everything while it stays readable."""
    assert list_names({"b", "c", "a"}) == "a, b, c"


def test_a_long_list_is_cut_at_ten_and_says_how_many_there_are() -> None:
    """A message about 494 keys stays readable and hides no number."""
    text = list_names([f"{number:03}" for number in range(494)])
    assert text.startswith("000, 001, ")
    assert text.endswith("009, … (494 in all)")
