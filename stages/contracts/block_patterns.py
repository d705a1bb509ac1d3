"""Which blocks a person means: `double.0-3`, `single.7`, `single`.

    pattern = stack | stack "." index | stack "." first "-" last
    stack   = "double" | "single"

A pattern says nothing about how many blocks there are; families/chosen_blocks.py compares it with a
model.
`base` is no pattern: its layers are never trained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from stages.contracts.blocks import Stack

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

    def overlaps(self, other: BlockPattern) -> bool:
        """Return whether some block is named by both."""
        first = max(self.first, other.first)
        return self.stack == other.stack and self._holds(first) and other._holds(first)

    def _holds(self, index: int) -> bool:
        return self.first <= index and (self.last is None or index <= self.last)
