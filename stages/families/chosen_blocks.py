"""Which blocks of a model a person's patterns name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from stages.contracts.block_patterns import BlockPattern
from stages.contracts.blocks import BlockId, Stack
from stages.contracts.errors import Problem

_STACKS: Final[tuple[Stack, ...]] = ("double", "single")


def names_block(patterns: Iterable[str], block: BlockId) -> bool:
    """Return whether one of the patterns names `block`."""
    return any(_matches(BlockPattern.parse(pattern), block) for pattern in patterns)


def choose_blocks(
    patterns: Sequence[str], present: Sequence[BlockId], where: str
) -> tuple[tuple[BlockId, ...], list[Problem]]:
    """Return the blocks of `present` that the patterns name, and the patterns that go beyond.

    Args:
        patterns: as contracts/block_patterns.py reads them; a block named by several counts once.
        present: all blocks of the model, in model order.
        where: the key of params.yaml, for the problems.
    """
    parsed = [BlockPattern.parse(pattern) for pattern in patterns]
    counts = {stack: sum(block.stack == stack for block in present) for stack in _STACKS}
    problems = [
        Problem(where, f"{text!r} names no block, or some that are not there", _range_of(counts))
        for text, pattern in zip(patterns, parsed, strict=True)
        if (pattern.first if pattern.last is None else pattern.last) >= counts[pattern.stack]
    ]
    chosen = tuple(block for block in present if any(_matches(each, block) for each in parsed))
    return chosen, problems


def _range_of(counts: dict[Stack, int]) -> str:
    ranges = [f"{stack}.0 to {stack}.{count - 1}" for stack, count in counts.items() if count]
    return f"The base model has {' and '.join(ranges)}."


def _matches(pattern: BlockPattern, block: BlockId) -> bool:
    if block.stack != pattern.stack or block.index < pattern.first:
        return False
    return pattern.last is None or block.index <= pattern.last
