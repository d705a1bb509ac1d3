"""Adapters by block."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stages.adapters.module import Adapter
from stages.adapters.partition import join, restrict, split_by_block
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError
from stages.families.architecture import block_of

Same = Callable[[Adapter, Adapter], None]


def test_the_parts_are_a_partition(scaled_adapter: Adapter, same: Same) -> None:
    """Every module is in exactly one part, its own block's, and the union is the source."""
    parts = split_by_block(scaled_adapter)
    assert tuple(parts) == scaled_adapter.blocks
    modules = [module for part in parts.values() for module in part.modules]
    assert len(modules) == len(set(modules)) == len(scaled_adapter.modules)
    for block, part in parts.items():
        assert {block_of(module) for module in part.modules} == {block}
        assert part.metadata == scaled_adapter.metadata
    same(join(parts.values()), scaled_adapter)


def test_restrict_keeps_the_named_blocks(full_adapter: Adapter, same: Same) -> None:
    """A slim adapter is the union of its blocks' parts."""
    kept = [BlockId.parse("single.2"), BlockId.parse("double.0")]
    parts = split_by_block(full_adapter)
    same(restrict(full_adapter, kept), join([parts[block] for block in kept]))
    assert restrict(full_adapter, []).modules == {}


def test_absent_blocks_are_named(full_adapter: Adapter) -> None:
    """Absent is not zero: a block that the adapter lacks cannot be kept."""
    slim = restrict(full_adapter, [BlockId.parse("double.1")])
    wanted = [BlockId.parse("double.0"), BlockId.parse("double.1"), BlockId.parse("base")]
    with pytest.raises(AdapterError, match=r"not present: base, double\.0\. It has double\.1\."):
        restrict(slim, wanted)


def test_overlapping_parts_are_refused(full_adapter: Adapter) -> None:
    """Which of two pairs for one module would count is nobody's guess."""
    part = restrict(full_adapter, [BlockId.parse("base")])
    with pytest.raises(AdapterError, match=r"in more than one part: context_embedder, "):
        join([full_adapter, part])


def test_joined_metadata_is_what_all_parts_agree_on(full_adapter: Adapter) -> None:
    """A field that differs is true of no union."""
    parts = list(split_by_block(full_adapter).values())
    other = Adapter(parts[0].modules, {**parts[0].metadata, "trained_by": "someone else"})
    assert join([other, *parts[1:]]).metadata == {"ünïcode": "é"}
    assert join([]).modules == join([]).metadata == {}
