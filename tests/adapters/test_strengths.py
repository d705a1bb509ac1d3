"""Blocks at other strengths than they were trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.adapters.dora import DoraPair
from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.module import Adapter
from stages.adapters.pair import Origin
from stages.adapters.strengths import require_scalable, with_strengths
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError
from stages.families.architecture import block_of
from stages.families.noise import keyed_normal

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


def test_dora_is_refused(full_adapter: Adapter) -> None:
    """It can be on or off in a file, and nothing between."""
    modules = dict(full_adapter.modules)
    odd = next(module for module in modules if block_of(module) == HALF)
    pair = modules[odd]
    modules[odd] = DoraPair(pair, torch.ones(len(pair.up), 1), Origin("layer", "DoRA", {}))
    adapter = Adapter(modules, {})
    assert with_strengths(adapter, {HALF: 1.0}).modules[odd] is modules[odd]
    with pytest.raises(AdapterError, match=rf"is DoRA, which is not linear: {re.escape(odd)}"):
        with_strengths(adapter, {HALF: 0.5})
    with pytest.raises(AdapterError, match=r"a\.safetensors: is DoRA"):
        require_scalable(adapter, "a.safetensors", "Do without.")
    require_scalable(full_adapter, "b.safetensors", "Do without.")


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr of products"])
def test_loha_and_lokr_are_scaled_in_their_own_format(kind: str, tmp_path: Path) -> None:
    """The written file has half of Delta W in all layers that the fused one is."""
    parts = {
        "LoHa": {
            "hada_w1_a": (12, 2),
            "hada_w1_b": (2, 4),
            "hada_w2_a": (12, 2),
            "hada_w2_b": (2, 4),
        },
        "LoKr": {"lokr_w1": (2, 2), "lokr_w2": (6, 2)},
        "LoKr of products": {
            "lokr_w1_a": (2, 1),
            "lokr_w1_b": (1, 2),
            "lokr_w2_a": (6, 1),
            "lokr_w2_b": (1, 2),
        },
    }[kind]
    name = "lora_unet_double_blocks_0_txt_attn_qkv"
    save_file(
        {f"{name}.{end}": keyed_normal(shape, end) for end, shape in parts.items()},
        tmp_path / "a.safetensors",
    )
    whole = read_adapter(tmp_path / "a.safetensors")
    half = with_strengths(whole, {HALF: 0.5})
    write_adapter(tmp_path / "b.safetensors", half)
    written = read_adapter(tmp_path / "b.safetensors")
    assert len(written.modules) == 3
    for module, change in whole.modules.items():
        torch.testing.assert_close(half.modules[module].delta(), 0.5 * change.delta())
        torch.testing.assert_close(written.modules[module].delta(), 0.5 * change.delta())


def test_absent_blocks_are_named(full_adapter: Adapter) -> None:
    """What is not there cannot be made stronger."""
    with pytest.raises(AdapterError, match=r"not present: single\.9"):
        with_strengths(full_adapter, {BlockId.parse("single.9"): 2.0})
