"""Adapters that were made for another model."""

from __future__ import annotations

import pytest
from diffusers import FluxTransformer2DModel

from stages.adapters.compatibility import linear_shapes, require_fit, require_modules
from stages.adapters.module import Adapter
from stages.contracts.errors import AdapterError
from stages.families.architecture import Architecture, block_of, lora_modules


def test_shapes_are_those_of_the_weights(tiny_flux: FluxTransformer2DModel) -> None:
    """All Linear layers are found, all have a block, and blocks hold what lora_modules says."""
    shapes = linear_shapes(tiny_flux)
    for name, shape in shapes.items():
        assert tuple(tiny_flux.get_submodule(name).weight.shape) == shape
    in_blocks = {name for name in shapes if block_of(name).stack != "base"}
    assert in_blocks == set(lora_modules(Architecture.from_config(tiny_flux.config), "all"))
    assert len(shapes) == 2 * 14 + 3 * 6 + 10


def test_a_fitting_adapter_is_accepted(
    adapter: Adapter, shapes: dict[str, tuple[int, int]]
) -> None:
    """An adapter may lack modules of the model; that is no misfit."""
    require_fit(adapter, shapes)


def test_unknown_modules_and_wrong_shapes_are_named_together(full_adapter: Adapter) -> None:
    """A smaller, narrower base model: one message names what is missing and what differs."""
    narrow = {
        module: (pair.up.shape[0], pair.down.shape[1] // 2)
        for module, pair in full_adapter.modules.items()
        if block_of(module).stack != "single"
    }
    with pytest.raises(AdapterError) as caught:
        require_fit(full_adapter, narrow)
    message = str(caught.value)
    assert "not in the base model: single_transformer_blocks.0.attn.to_k, " in message
    assert "(18 in all)" in message
    assert "differ: context_embedder (adapter (32, 64), base (32, 32)), " in message
    assert "set params fetch to the base model it was made for" in message


def test_modules_to_train_must_exist(shapes: dict[str, tuple[int, int]]) -> None:
    """A name without a layer is refused before anything is put on the model."""
    require_modules(["proj_out"], shapes)
    with pytest.raises(AdapterError, match=r"not in the base model: transformer_blocks\.9\.x"):
        require_modules(["proj_out", "transformer_blocks.9.x"], shapes)
