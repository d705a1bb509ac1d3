"""Block identity: one type, one parser, one order."""

from __future__ import annotations

import re

import pytest

from stages.contracts.blocks import BASE, BLOCK_PATTERN, BlockId, numbered_blocks


def test_every_block_of_flux_round_trips() -> None:
    """What is written into a table is read back as the same block."""
    blocks = (*numbered_blocks(19, 38), BASE)
    assert len(blocks) == 58
    for block in blocks:
        assert BlockId.parse(str(block)) == block
        assert re.fullmatch(BLOCK_PATTERN, str(block))


def test_blocks_sort_in_model_order() -> None:
    """double.2 comes before double.10, doubles before singles, base last."""
    blocks = (*numbered_blocks(19, 38), BASE)
    assert sorted([*blocks[5:], *blocks[:5]]) == list(blocks)


@pytest.mark.parametrize(
    "text",
    ["", "7", "double", "double.", "double.07", "double.-1", "Single.3", "base.0", "single.3 "],
)
def test_anything_else_is_refused(text: str) -> None:
    """A near miss is an error, never another block."""
    with pytest.raises(ValueError, match="not a block"):
        BlockId.parse(text)
