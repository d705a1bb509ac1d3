"""The one name of a transformer block: `double.0`, `single.37`, or `base`.

`base` is everything outside the blocks (embedders, norm_out, proj_out). Block counts never
appear here: they come from the transformer's own config (see stages/families).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Final, Literal

Stack = Literal["double", "single", "base"]

BLOCK_PATTERN: Final = r"(?:(?:double|single)\.(?:0|[1-9]\d*)|base)"
"""Regular expression of a block's text form, for table contracts."""

_STACK_ORDER: Final[dict[str, int]] = {"double": 0, "single": 1, "base": 2}
_NUMBERED: Final = re.compile(r"(double|single)\.(0|[1-9]\d*)")


@total_ordering
@dataclass(frozen=True)
class BlockId:
    """A block: its stack and its index in that stack (0-based; 0 for `base`).

    Blocks sort in the order in which the model runs them, `base` last.
    """

    stack: Stack
    index: int

    @classmethod
    def parse(cls, text: str) -> BlockId:
        """Return the block that `text` names, such as `single.7`.

        Raises:
            ValueError: `text` is not `double.N`, `single.N` or `base`.
        """
        if text == "base":
            return BASE
        match = _NUMBERED.fullmatch(text)
        if match is None:
            raise ValueError(f"not a block: {text!r} (expected double.N, single.N or base)")
        stack: Stack = "double" if match[1] == "double" else "single"
        return cls(stack, int(match[2]))

    def __str__(self) -> str:
        """Return the text form, the inverse of `parse`."""
        return "base" if self.stack == "base" else f"{self.stack}.{self.index}"

    def __lt__(self, other: object) -> bool:
        """Order by stack (double, single, base), then by index."""
        if not isinstance(other, BlockId):
            return NotImplemented
        return self._key() < other._key()

    def _key(self) -> tuple[int, int]:
        return (_STACK_ORDER[self.stack], self.index)


BASE: Final = BlockId("base", 0)


def numbered_blocks(double_blocks: int, single_blocks: int) -> tuple[BlockId, ...]:
    """Return all double blocks, then all single blocks, in the order the model runs them."""
    doubles = tuple(BlockId("double", index) for index in range(double_blocks))
    return doubles + tuple(BlockId("single", index) for index in range(single_blocks))
