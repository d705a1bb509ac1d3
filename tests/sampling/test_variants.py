"""Names and gates of variants."""

import pytest

from stages.contracts.blocks import BlockId, numbered_blocks
from stages.sampling.variants import (
    FULL,
    NONE,
    REPEAT,
    gate_values,
    only,
    only_group,
    parse_variant,
    random,
    strength,
    subset,
    without,
    without_group,
)

BLOCKS = numbered_blocks(1, 2)
LAST = BlockId("single", 1)


@pytest.mark.parametrize(
    "variant",
    [NONE, FULL, REPEAT, only(LAST), without(BLOCKS[0]), random(LAST), strength(0.25)],
)
def test_names_are_read_back(variant: object) -> None:
    """A table's name gives the variant that wrote it."""
    assert parse_variant(str(variant)) == variant


def test_names_in_tables_and_files() -> None:
    """Tables say `only:single.1`; files cannot hold a colon on every system."""
    assert (str(only(LAST)), only(LAST).file_stem) == ("only:single.1", "only-single.1")
    assert (str(subset("slim", [LAST])), FULL.file_stem) == ("subset:slim", "full")
    assert (str(strength(1.0)), strength(0.125).file_stem) == ("strength:1", "strength-0.125")


@pytest.mark.parametrize(
    "text", ["all", "only", "only:double", "without:", "subset:slim", "only-group:a", ""]
)
def test_other_names_are_refused(text: str) -> None:
    """Unknown kinds, bad blocks and subsets without their blocks are errors."""
    with pytest.raises(ValueError, match="not a"):
        parse_variant(text)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (NONE, (0, 0, 0)),
        (FULL, (1, 1, 1)),
        (REPEAT, (1, 1, 1)),
        (only(LAST), (0, 0, 1)),
        (without(LAST), (1, 1, 0)),
        (subset("two", BLOCKS[:2]), (1, 1, 0)),
        (subset("nothing", []), (0, 0, 0)),
        (subset("mixed", {BLOCKS[0]: 0.5, LAST: 1.5}), (0.5, 0, 1.5)),
        (only_group("early", BLOCKS[:2]), (1, 1, 0)),
        (without_group("early", BLOCKS[:2]), (0, 0, 1)),
        (random(LAST), (0, 0, 1)),
        (strength(0.25), (0.25, 0.25, 0.25)),
    ],
)
def test_gates_follow_the_order_of_blocks(variant: object, expected: tuple[int, ...]) -> None:
    """Each variant's gates, in the order of the blocks given."""
    assert gate_values(variant, BLOCKS) == expected


@pytest.mark.parametrize("make", [only, without, lambda block: subset("one", [block])])
def test_absent_blocks_are_refused(make: object) -> None:
    """`not present` is not `no effect`: a block that the adapter lacks has no picture."""
    with pytest.raises(ValueError, match=r"lacks: \['single.9'\]"):
        gate_values(make(BlockId("single", 9)), BLOCKS)
