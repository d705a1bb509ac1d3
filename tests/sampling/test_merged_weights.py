"""Blocks in the base weights: the same numbers to rounding, and the same weights afterwards."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import attach_adapter, detach, lora_layers
from stages.adapters.compatibility import linear_shapes
from stages.contracts.blocks import BlockId
from stages.families.architecture import block_of
from stages.sampling.gates import BlockGates, block_gates
from stages.sampling.merged_weights import can_merge
from tests.sampling.planting import plant_adapter, same_strength, tiny_architecture, tiny_velocity

BLOCKS = tiny_architecture().blocks
BATCH = 4
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
ROWS = {
    "full": torch.ones(BATCH, len(BLOCKS)),
    "strength": torch.full((BATCH, len(BLOCKS)), 0.75),
    "a strength per block": torch.tensor([[0.0, 1.0, 0.5, 1.5, -0.25]]).expand(BATCH, -1),
    "one block differs": torch.tensor([[0.0, 1.0, 1, 1, 1], *[[1.0, 1.0, 1, 1, 1]] * 3]),
}


@pytest.fixture
def adapted(tiny_flux: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The transformer with an adapter in every block."""
    strengths = same_strength(BLOCKS, 0.1)
    shapes = linear_shapes(tiny_flux)
    attach_adapter(tiny_flux, plant_adapter(tiny_architecture(), shapes, strengths))
    return tiny_flux


@pytest.fixture
def merging(adapted: FluxTransformer2DModel) -> Iterator[BlockGates]:
    """The open gates of a transformer that merges what it can."""
    with block_gates(adapted, BLOCKS, merge=True) as opened:
        yield opened


def merged_blocks(transformer: FluxTransformer2DModel) -> set[BlockId]:
    """The blocks whose own LoRA part is not computed."""
    layers = lora_layers(transformer).items()
    return {block_of(name) for name, layer in layers if layer.disable_adapters}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_merged_is_what_the_gates_compute(rows: torch.Tensor, adapted, merging) -> None:
    """Whatever the strengths, the numbers are those of gates that merge nothing."""
    merging.set(rows)
    alike = {block for column, block in enumerate(BLOCKS) if rows[:, column].unique().numel() == 1}
    assert merged_blocks(adapted) == alike
    merged = tiny_velocity(adapted)
    merging.set(rows.clone().requires_grad_())
    assert not merged_blocks(adapted)
    computed = tiny_velocity(adapted).detach()
    torch.testing.assert_close(merged, computed, **ROUNDING)
    merging.set(torch.zeros(BATCH, len(BLOCKS)))
    assert (merged - tiny_velocity(adapted)).abs().max() > 100 * (merged - computed).abs().max()


def test_nothing_adds_up(adapted) -> None:
    """After many strengths none of a block is left in the weights: they are the same tensors."""
    weights = {
        name: layer.get_base_layer().weight.data_ptr()
        for name, layer in lora_layers(adapted).items()
    }
    plain = tiny_velocity(adapted)
    with block_gates(adapted, BLOCKS, merge=True) as gates:
        for rows in [*ROWS.values()] * 3:
            gates.set(rows)
        gates.set(ROWS["full"])
        first = tiny_velocity(adapted)
        gates.set(ROWS["strength"])
        gates.set(ROWS["full"])
        assert torch.equal(tiny_velocity(adapted), first)
    assert torch.equal(tiny_velocity(adapted), plain)
    assert weights == {
        name: layer.get_base_layer().weight.data_ptr()
        for name, layer in lora_layers(adapted).items()
    }


def test_zero_is_the_base_model_bit_for_bit(adapted) -> None:
    """With all gates 0 nothing of the adapter is left."""
    with block_gates(adapted, BLOCKS, merge=True) as gates:
        gates.set(ROWS["full"])
        gates.set(torch.zeros(BATCH, len(BLOCKS)))
        bare = tiny_velocity(adapted)
    detach(adapted)
    assert torch.equal(tiny_velocity(adapted), bare)


def test_only_plain_float32_weights_are_merged(adapted) -> None:
    """In bfloat16 a small change of a weight would be lost, so such weights stay as they are."""
    adapted.to(torch.bfloat16)
    assert not any(can_merge(layer) for layer in lora_layers(adapted).values())
    with block_gates(adapted, BLOCKS, merge=True) as gates:
        gates.set(ROWS["full"])
        assert not merged_blocks(adapted)
