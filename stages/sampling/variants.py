"""Which blocks of the LoRA are on in a picture, how strongly, and what such a picture is called.

none                  no block: the base model
full                  all blocks: the LoRA as trained
repeat                all blocks once more, in a batch of other pictures: the repeat floor
only:<block>          that block alone
without:<block>       all blocks but that one
random:<block>        that block alone, with noise of the same norm in place of its weights
strength:<s>          all blocks at strength s
only-group:<name>     a named band of blocks alone
without-group:<name>  all blocks but those
subset:<name>         a named set of blocks, each at its own strength
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stages.contracts.blocks import BlockId

Kind = Literal[
    "none",
    "full",
    "repeat",
    "only",
    "without",
    "random",
    "strength",
    "only-group",
    "without-group",
    "subset",
]

_SEPARATOR: Final = ":"


@dataclass(frozen=True)
class Variant:
    """A choice of blocks and their strengths.

    `detail` is what follows the kind in the name. `chosen` are the blocks that the choice names,
    each with its gate; `rest` is the gate of all others.
    """

    kind: Kind
    detail: str = ""
    chosen: frozenset[tuple[BlockId, float]] = frozenset()
    rest: float = 0.0

    def __str__(self) -> str:
        """Return the name in tables, such as `only:double.3`."""
        return f"{self.kind}{_SEPARATOR}{self.detail}" if self.detail else self.kind

    @property
    def file_stem(self) -> str:
        """The name of its picture's file without the suffix, such as `only-double.3`."""
        return str(self).replace(_SEPARATOR, "-")


NONE: Final = Variant("none")
FULL: Final = Variant("full", rest=1.0)
REPEAT: Final = Variant("repeat", rest=1.0)


def only(block: BlockId) -> Variant:
    """Return the variant with that block alone."""
    return Variant("only", str(block), frozenset({(block, 1.0)}))


def without(block: BlockId) -> Variant:
    """Return the variant with all blocks but that one."""
    return Variant("without", str(block), frozenset({(block, 0.0)}), rest=1.0)


def random(block: BlockId) -> Variant:
    """Return the variant with that block's noise alone; the model must wear the noise."""
    return Variant("random", str(block), frozenset({(block, 1.0)}))


def strength(value: float) -> Variant:
    """Return the variant with all blocks at `value`, which has at most three decimals."""
    return Variant("strength", f"{value:g}", rest=value)


def only_group(name: str, blocks: Collection[BlockId]) -> Variant:
    """Return the variant with a named band of blocks alone."""
    return Variant("only-group", name, frozenset((block, 1.0) for block in blocks))


def without_group(name: str, blocks: Collection[BlockId]) -> Variant:
    """Return the variant with all blocks but a named band."""
    return Variant("without-group", name, frozenset((block, 0.0) for block in blocks), rest=1.0)


def subset(name: str, blocks: Collection[BlockId] | Mapping[BlockId, float]) -> Variant:
    """Return the variant with a named set of blocks: fully on, or each at its own strength."""
    strengths = blocks if isinstance(blocks, Mapping) else dict.fromkeys(blocks, 1.0)
    return Variant("subset", name, frozenset(strengths.items()))


def parse_variant(text: str) -> Variant:
    """Return the variant that a table or a file calls `text`.

    Raises:
        ValueError: no variant has that name; groups and subsets are not known by name alone.
    """
    plain = {str(variant): variant for variant in (NONE, FULL, REPEAT)}
    if text in plain:
        return plain[text]
    kind, _, detail = text.partition(_SEPARATOR)
    makers = {"only": only, "without": without, "random": random}
    if kind in makers:
        return makers[kind](BlockId.parse(detail))
    if kind == "strength":
        return strength(float(detail))
    raise ValueError(
        f"not a variant: {text!r} (expected none, full, repeat, only:<block>, without:<block>, "
        "random:<block> or strength:<number>)"
    )


def gate_values(variant: Variant, blocks: Sequence[BlockId]) -> tuple[float, ...]:
    """Return the gate of each of `blocks` in the given order: 0 is off, 1 as trained.

    Args:
        variant: the choice.
        blocks: the blocks present in the adapter.

    Raises:
        ValueError: the variant names a block that is not among `blocks`.
    """
    chosen = dict(variant.chosen)
    if absent := chosen.keys() - set(blocks):
        raise ValueError(
            f"{variant} names blocks that the adapter lacks: {sorted(map(str, absent))}"
        )
    return tuple(chosen.get(block, variant.rest) for block in blocks)
