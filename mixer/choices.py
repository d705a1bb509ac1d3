"""Strengths of blocks by name: what a person can set at once, and how params.yaml says them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, TypeAlias

from stages.contracts.blocks import BASE, BlockId, Stack
from stages.contracts.params import RenderParams
from stages.contracts.tables import SHARES, SLIM_STRENGTHS, Table, read_table
from stages.families.chosen_blocks import names_block

Strengths: TypeAlias = Mapping[BlockId, float]
"""A strength for each block of a LoRA: 0 is off, 1 as trained."""

STRONGEST: Final = 1.5
"""Largest strength of a block, as in params render.subsets."""

RECOMMENDED: Final = "recommended"
_STACKS: Final[tuple[Stack, ...]] = ("double", "single")


def bands(params: RenderParams, blocks: Sequence[BlockId]) -> dict[str, tuple[BlockId, ...]]:
    """Return sets of blocks by name: each stack, then render.groups; empty ones are left out."""
    patterns = {**{str(stack): [str(stack)] for stack in _STACKS}, **params.groups}
    found = {name: _members(each, blocks) for name, each in patterns.items()}
    return {name: members for name, members in found.items() if members}


def presets(blocks: Sequence[BlockId], recommended: Strengths | None) -> dict[str, Strengths]:
    """Return strengths by name: all, none, each stack alone, and the recommended set if known."""
    stacks = {f"{stack} only": _only(stack, blocks) for stack in _STACKS}
    known = {} if recommended is None else {RECOMMENDED: recommended}
    return {
        "all": dict.fromkeys(blocks, 1.0),
        "none": dict.fromkeys(blocks, 0.0),
        **known,
        **{name: choice for name, choice in stacks.items() if any(choice.values())},
    }


def as_patterns(strengths: Strengths, blocks: Sequence[BlockId]) -> dict[str, float]:
    """Return the strengths as render.subsets has them: runs of neighbours, those that are off not.

    Args:
        strengths: of each of `blocks`, at most two decimals.
        blocks: those of the LoRA, in model order.
    """
    patterns: dict[str, float] = {}
    numbered = [block for block in blocks if block != BASE and strengths[block] != 0.0]

    def run(place_and_block: tuple[int, BlockId]) -> tuple[Stack, int, float]:
        place, block = place_and_block
        return block.stack, block.index - place, strengths[block]

    for (stack, _, strength), members in groupby(enumerate(numbered), key=run):
        indices = [block.index for _, block in members]
        last = f"-{indices[-1]}" if len(indices) > 1 else ""
        patterns[f"{stack}.{indices[0]}{last}"] = strength
    if strengths.get(BASE, 0.0) != 0.0:
        patterns[str(BASE)] = strengths[BASE]
    return patterns


def read_shares(path: Path, blocks: Sequence[BlockId]) -> Strengths | None:
    """Return each block's share of the effect, or None where they are not known for `blocks`."""
    return _read_column(SHARES, path, "share", blocks)


def read_recommended(path: Path, blocks: Sequence[BlockId]) -> Strengths | None:
    """Return the strengths that stage `slim` found, or None where there are none for `blocks`.

    To two decimals, as a slider has them.
    """
    found = _read_column(SLIM_STRENGTHS, path, "strength", blocks)
    return found and {block: round(strength, 2) for block, strength in found.items()}


def _read_column(
    table: Table, path: Path, column: str, blocks: Sequence[BlockId]
) -> dict[BlockId, float] | None:
    if not path.is_file():
        return None
    rows = read_table(table, path)
    values = dict(zip(map(BlockId.parse, rows["block"]), rows[column].tolist(), strict=True))
    return {block: values[block] for block in blocks} if values.keys() == set(blocks) else None


def _members(patterns: Sequence[str], blocks: Sequence[BlockId]) -> tuple[BlockId, ...]:
    plain = [pattern for pattern in patterns if pattern != str(BASE)]
    base = len(plain) < len(patterns)
    return tuple(
        block for block in blocks if (base if block == BASE else names_block(plain, block))
    )


def _only(stack: Stack, blocks: Sequence[BlockId]) -> dict[BlockId, float]:
    return {block: float(block.stack == stack) for block in blocks}
