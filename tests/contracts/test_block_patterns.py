"""The grammar of block patterns."""

from __future__ import annotations

import pytest

from stages.contracts.block_patterns import BlockPattern


@pytest.mark.parametrize(
    "text",
    ["", "base", "double.", "double.01", "double.1-", "7", "double 1", "double.-1", "single.1,2"],
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    """The message shows the text and what was expected."""
    with pytest.raises(ValueError, match=r"not a pattern of blocks.*expected double, single"):
        BlockPattern.parse(text)


def test_a_range_runs_forward() -> None:
    """3-0 is a slip, not an empty set."""
    with pytest.raises(ValueError, match=r"'double\.3-0' runs backwards"):
        BlockPattern.parse("double.3-0")
