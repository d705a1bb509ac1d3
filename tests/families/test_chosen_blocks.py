"""Which blocks of a model patterns name."""

from __future__ import annotations

import pytest

from stages.contracts.block_patterns import BlockPattern
from stages.contracts.blocks import BlockId, numbered_blocks
from stages.families.chosen_blocks import choose_blocks, names_block

FLUX_1 = numbered_blocks(19, 38)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("double.0-3", ["double.0", "double.1", "double.2", "double.3"]),
        ("single.7", ["single.7"]),
        ("single.36-37", ["single.36", "single.37"]),
        ("double.0", ["double.0"]),
    ],
)
def test_a_pattern_names_its_blocks_and_no_others(text: str, names: list[str]) -> None:
    """Both ends count; the other stack's block of the same number does not."""
    assert [str(block) for block in FLUX_1 if names_block([text], block)] == names


def test_a_stack_alone_is_all_of_it() -> None:
    """`double` and `single` are kohya's train_blocks."""
    assert sum(names_block(["double"], block) for block in FLUX_1) == 19
    assert sum(names_block(["single"], block) for block in FLUX_1) == 38
    assert all(names_block(["double", "single"], block) for block in FLUX_1)


@pytest.mark.parametrize("text", [str(block) for block in (FLUX_1[0], FLUX_1[18], FLUX_1[56])])
def test_a_blocks_own_name_is_a_pattern(text: str) -> None:
    """What a table of ours calls a block can be put into train.blocks as it is."""
    assert [block for block in FLUX_1 if names_block([text], block)] == [BlockId.parse(text)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("double.0-3", "double.3-5", True),
        ("double.0-3", "double.4", False),
        ("single", "single.30", True),
        ("single.1", "double.1", False),
        ("double", "double", True),
        ("double.2-9", "double.3-4", True),
    ],
)
def test_overlap_is_a_common_block(one: str, other: str, expected: bool) -> None:
    """It is the same seen from both sides, and says what the blocks of FLUX.1 say."""
    first, second = BlockPattern.parse(one), BlockPattern.parse(other)
    assert first.overlaps(second) is second.overlaps(first) is expected
    both = [b for b in FLUX_1 if names_block([one], b) and names_block([other], b)]
    assert bool(both) is expected


def test_blocks_are_chosen_in_model_order_and_once() -> None:
    """The order of the patterns, and a block named twice, make no difference."""
    chosen, problems = choose_blocks(["single.2", "double.1-2", "double.2"], FLUX_1, "train.blocks")
    assert [str(block) for block in chosen] == ["double.1", "double.2", "single.2"]
    assert problems == []


def test_blocks_beyond_the_model_are_all_named() -> None:
    """Flex.1-alpha has 8 double blocks: patterns made for FLUX.1 are refused, not cut short."""
    patterns = ["double.7", "double.8", "double.5-12", "single.37-38", "single"]
    _, problems = choose_blocks(patterns, numbered_blocks(8, 38), "train.blocks")
    assert [problem.what.split()[0] for problem in problems] == [
        "'double.8'",
        "'double.5-12'",
        "'single.37-38'",
    ]
    assert (
        problems[0].remedy == "The base model has double.0 to double.7 and single.0 to single.37."
    )
    _, none = choose_blocks(["double"], numbered_blocks(0, 4), "train.blocks")
    assert [problem.remedy for problem in none] == ["The base model has single.0 to single.3."]
