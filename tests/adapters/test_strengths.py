"""Blocks at other strengths than they were trained."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from stages.adapters.module import Adapter
from stages.adapters.pair import Origin
from stages.adapters.strengths import require_scalable, with_strengths
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError
from stages.families.architecture import block_of

HALF, WHOLE = BlockId.parse("double.0"), BlockId.parse("single.2")


def test_a_strength_scales_the_change_of_its_block_alone(full_adapter: Adapter) -> None:
    """Delta W is as many times as large; strength 1 changes no bit; other blocks are left out."""
    scaled = with_strengths(full_adapter, {HALF: 0.5, WHOLE: 1.0})
    assert scaled.blocks == (HALF, WHOLE)
    assert scaled.metadata == full_adapter.metadata
    for module, pair in scaled.modules.items():
        before = full_adapter.modules[module]
        factor = 0.5 if block_of(module) == HALF else 1.0
        assert torch.equal(pair.down, before.down)
        assert torch.equal(pair.delta(), factor * before.delta())


def test_what_is_no_plain_lora_is_refused(full_adapter: Adapter) -> None:
    """A LoHa layer is written as it came: it can be on or off, and nothing between."""
    modules = dict(full_adapter.modules)
    odd = next(module for module in modules if block_of(module) == HALF)
    modules[odd] = replace(modules[odd], origin=Origin("layer", "LoHa", {}))
    adapter = Adapter(modules, {})
    assert with_strengths(adapter, {HALF: 1.0}).modules[odd] is modules[odd]
    with pytest.raises(AdapterError, match=rf"no plain LoRA: {re.escape(odd)}"):
        with_strengths(adapter, {HALF: 0.5})
    with pytest.raises(AdapterError, match=r"a\.safetensors: no plain LoRA"):
        require_scalable(adapter, "a.safetensors", "Do without.")
    require_scalable(full_adapter, "b.safetensors", "Do without.")


def test_absent_blocks_are_named(full_adapter: Adapter) -> None:
    """What is not there cannot be made stronger."""
    with pytest.raises(AdapterError, match=r"not present: single\.9"):
        with_strengths(full_adapter, {BlockId.parse("single.9"): 2.0})
