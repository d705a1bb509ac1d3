"""Which blocks of the LoRA are on in a picture, and what such a picture is called.

none            no block: the base model
full            all blocks: the LoRA as trained
repeat          all blocks once more, in a batch of other pictures: the noise floor
only:<block>    that block alone
without:<block> all blocks but that one
subset:<name>   a named set of blocks
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stages.contracts.blocks import BlockId

Kind = Literal["none", "full", "repeat", "only", "without", "subset"]

_SEPARATOR: Final = ":"


@dataclass(frozen=True)
class Variant:
    """A choice of blocks.

    `block` belongs to `only` and `without`; `name` and `blocks` belong to `subset`. Other fields
    stay empty, which the functions below see to.
    """

    kind: Kind
    block: BlockId | None = None
    name: str = ""
    blocks: frozenset[BlockId] = frozenset()

    def __str__(self) -> str:
        """Return the name in tables, such as `only:double.3`."""
        detail = self.name if self.block is None else str(self.block)
        return f"{self.kind}{_SEPARATOR}{detail}" if detail else self.kind

    @property
    def file_stem(self) -> str:
        """The name of its picture's file without the suffix, such as `only-double.3`."""
        return str(self).replace(_SEPARATOR, "-")


NONE: Final = Variant("none")
FULL: Final = Variant("full")
REPEAT: Final = Variant("repeat")


def only(block: BlockId) -> Variant:
    """Return the variant with that block alone."""
    return Variant("only", block)


def without(block: BlockId) -> Variant:
    """Return the variant with all blocks but that one."""
    return Variant("without", block)


def subset(name: str, blocks: Collection[BlockId]) -> Variant:
    """Return the variant with a named set of blocks."""
    return Variant("subset", name=name, blocks=frozenset(blocks))


def parse_variant(text: str) -> Variant:
    """Return the variant that a table or a file calls `text`.

    Raises:
        ValueError: no variant has that name; a `subset` is not known by its name alone.
    """
    if text == "none":
        return NONE
    if text == "full":
        return FULL
    if text == "repeat":
        return REPEAT
    kind, _, detail = text.partition(_SEPARATOR)
    if kind == "only":
        return only(BlockId.parse(detail))
    if kind == "without":
        return without(BlockId.parse(detail))
    raise ValueError(
        f"not a variant: {text!r} (expected none, full, repeat, only:<block> or without:<block>)"
    )


def gate_values(variant: Variant, blocks: Sequence[BlockId]) -> tuple[float, ...]:
    """Return the gate, 0 or 1, of each of `blocks` in the given order.

    Args:
        variant: the choice.
        blocks: the blocks present in the adapter.

    Raises:
        ValueError: the variant names a block that is not among `blocks`.
    """
    named = set(variant.blocks) if variant.block is None else {variant.block}
    if absent := named - set(blocks):
        raise ValueError(
            f"{variant} names blocks that the adapter lacks: {sorted(map(str, absent))}"
        )
    if variant.kind in ("only", "subset"):
        return tuple(float(block in named) for block in blocks)
    if variant.kind == "without":
        return tuple(float(block not in named) for block in blocks)
    return (0.0 if variant.kind == "none" else 1.0,) * len(blocks)
