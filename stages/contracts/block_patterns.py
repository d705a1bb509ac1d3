"""Which blocks a person means: `double.0-3`, `single.7`, `single`.

    pattern = stack | stack "." index | stack "." first "-" last
    stack   = "double" | "single"

A pattern says nothing about how many blocks there are; `choose_blocks` compares it with a model.
`base` is no pattern: its layers are never trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from stages.contracts.blocks import BlockId, Stack
from stages.contracts.errors import Problem

_PATTERN: Final = re.compile(
    r"(double|single)(?:\.(?P<first>0|[1-9]\d*)(?:-(?P<last>0|[1-9]\d*))?)?"
)
_GRAMMAR: Final = "expected double, single, double.3 or single.0-9"


@dataclass(frozen=True)
class BlockPattern:
    """Blocks of one stack, from `first` to `last` inclusive; `last` is None where it is open."""

    stack: Stack
    first: int
    last: int | None

    @classmethod
    def parse(cls, text: str) -> BlockPattern:
        """Return the pattern that `text` states.

        Raises:
            ValueError: `text` is not in the grammar, or its range runs backwards.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"not a pattern of blocks: {text!r} ({_GRAMMAR})")
        stack: Stack = "double" if match[1] == "double" else "single"
        if match["first"] is None:
            return cls(stack, 0, None)
        first = int(match["first"])
        last = first if match["last"] is None else int(match["last"])
        if last < first:
            raise ValueError(f"not a pattern of blocks: {text!r} runs backwards")
        return cls(stack, first, last)

    def matches(self, block: BlockId) -> bool:
        """Return whether the pattern names `block`."""
        return block.stack == self.stack and self._holds(block.index)

    def overlaps(self, other: BlockPattern) -> bool:
        """Return whether some block is named by both."""
        first = max(self.first, other.first)
        return self.stack == other.stack and self._holds(first) and other._holds(first)

    def _holds(self, index: int) -> bool:
        return self.first <= index and (self.last is None or index <= self.last)


def names_block(patterns: Iterable[str], block: BlockId) -> bool:
    """Return whether one of the patterns names `block`."""
    return any(BlockPattern.parse(pattern).matches(block) for pattern in patterns)


def choose_blocks(
    patterns: Sequence[str], present: Sequence[BlockId], where: str
) -> tuple[tuple[BlockId, ...], list[Problem]]:
    """Return the blocks of `present` that the patterns name, and the patterns that go beyond.

    Args:
        patterns: in the grammar above; a block that several of them name counts once.
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
    chosen = tuple(block for block in present if any(each.matches(block) for each in parsed))
    return chosen, problems


_STACKS: Final[tuple[Stack, ...]] = ("double", "single")


def _range_of(counts: dict[Stack, int]) -> str:
    ranges = [f"{stack}.0 to {stack}.{count - 1}" for stack, count in counts.items() if count]
    return f"The base model has {' and '.join(ranges)}."
