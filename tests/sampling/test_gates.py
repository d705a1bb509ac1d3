"""Gates of blocks: exact at 0 and 1, per picture, differentiable."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import attach_adapter, detach, lora_layers
from stages.adapters.compatibility import linear_shapes
from stages.contracts.blocks import BASE, BlockId
from stages.sampling.gates import BlockGates, block_gates
from tests.sampling.planting import plant_adapter, same_strength, tiny_architecture, tiny_velocity

BLOCKS = tiny_architecture().blocks
BATCH, TEXT_TOKENS = 4, 5  # of tiny_inputs


@pytest.fixture
def base(tiny_flux: FluxTransformer2DModel) -> torch.Tensor:
    """The base model's output, before any adapter is attached."""
    return tiny_velocity(tiny_flux)


@pytest.fixture
def adapted(
    tiny_flux: FluxTransformer2DModel, base: torch.Tensor
) -> tuple[FluxTransformer2DModel, torch.Tensor]:
    """The transformer with an adapter in every block, and its output through PEFT alone."""
    shapes = linear_shapes(tiny_flux)
    strengths = same_strength(BLOCKS, 0.1)
    attach_adapter(tiny_flux, plant_adapter(tiny_architecture(), shapes, strengths))
    return tiny_flux, tiny_velocity(tiny_flux)


@pytest.fixture
def gates(adapted: tuple[FluxTransformer2DModel, torch.Tensor]) -> Iterator[BlockGates]:
    """The open gates of the adapted transformer."""
    with block_gates(adapted[0], BLOCKS) as opened:
        yield opened


def rows(*values: float) -> torch.Tensor:
    """Gates [4, blocks] with one value per picture."""
    return torch.tensor(values, dtype=torch.float32)[:, None].expand(BATCH, len(BLOCKS)).clone()


def test_all_zero_is_the_base_model_bit_for_bit(adapted, base, gates) -> None:
    """Acceptance 7: with all gates 0 nothing of the adapter is left."""
    assert not torch.equal(adapted[1], base)
    gates.set(rows(0, 0, 0, 0))
    assert torch.equal(tiny_velocity(adapted[0]), base)


def test_all_one_is_the_adapter_bit_for_bit(adapted, gates) -> None:
    """Acceptance 7: with all gates 1, and before any is set, the output is PEFT's own."""
    assert torch.equal(tiny_velocity(adapted[0]), adapted[1])
    gates.set(rows(1, 1, 1, 1))
    assert torch.equal(tiny_velocity(adapted[0]), adapted[1])


def test_each_picture_has_its_own_gates(adapted, base, gates) -> None:
    """Pictures with 0 and with 1 in one batch are still exact, whatever their neighbours are."""
    gates.set(rows(0, 1, 0.5, 1))
    mixed = tiny_velocity(adapted[0])
    assert torch.equal(mixed[0], base[0])
    assert torch.equal(mixed[[1, 3]], adapted[1][[1, 3]])
    assert not torch.equal(mixed[2], base[2])
    assert not torch.equal(mixed[2], adapted[1][2])


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_gate_rules_its_own_block(block: BlockId, adapted, gates) -> None:
    """One gate on gives the same output as an adapter that has that block alone."""
    transformer = adapted[0]
    values = torch.zeros(BATCH, len(BLOCKS))
    values[:, BLOCKS.index(block)] = 1.0
    gates.set(values)
    gated = tiny_velocity(transformer)
    detach(transformer)
    shapes = linear_shapes(transformer)
    alone = plant_adapter(tiny_architecture(), shapes, same_strength([block], 0.1))
    attach_adapter(transformer, alone)
    assert torch.equal(gated, tiny_velocity(transformer))


def test_skipping_changes_no_number(adapted, gates) -> None:
    """A block that no picture uses is not computed; computing it gives the same bits."""
    transformer = adapted[0]
    values = rows(1, 1, 1, 1)
    values[:, 0] = 0.0
    gates.set(values)
    assert sum(layer.disable_adapters for layer in lora_layers(transformer).values()) == 14
    skipped = tiny_velocity(transformer)
    gates.set(values.requires_grad_())
    assert not any(layer.disable_adapters for layer in lora_layers(transformer).values())
    assert torch.equal(skipped, tiny_velocity(transformer))


def test_gradients_reach_each_picture_and_block(adapted, gates) -> None:
    """The gradient of one picture's output is that of its own gates, by finite differences."""
    values = rows(0.5, 0.5, 0.5, 0.5).requires_grad_()
    gates.set(values)
    (slope,) = torch.autograd.grad(tiny_velocity(adapted[0])[1].sum(), values)
    assert slope[[0, 2, 3]].abs().max() == 0.0
    step = 1e-2
    for column in range(len(BLOCKS)):
        sums = []
        for sign in (1, -1):
            moved = values.detach().clone()
            moved[1, column] += sign * step
            gates.set(moved)
            sums.append(tiny_velocity(adapted[0])[1].double().sum())
        measured = (sums[0] - sums[1]) / (2 * step)
        assert slope[1, column].item() == pytest.approx(measured.item(), rel=0.05, abs=1e-3)


def test_leaving_restores_the_adapter(adapted) -> None:
    """After the gates are closed the whole adapter is on, frozen, and unhooked."""
    transformer = adapted[0]
    with block_gates(transformer, BLOCKS) as opened:
        opened.set(rows(0, 0, 0, 0))
    assert torch.equal(tiny_velocity(transformer), adapted[1])
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_gates_match_the_adapter(adapted, gates) -> None:
    """Gates for other blocks, and gates of another shape, are refused."""
    with (
        pytest.raises(ValueError, match="not those of the attached adapter"),
        block_gates(adapted[0], (*BLOCKS, BASE)),
    ):
        pass
    with pytest.raises(ValueError, match=r"expected gates \[B, 5\], .*got \[4, 3\]"):
        gates.set(torch.ones(4, 3))


def test_gates_of_all_streams_are_the_gate_of_the_block(adapted, gates) -> None:
    """The same gate for picture, prompt and both is the block's gate."""
    values = rows(0.25, 0.5, 0.75, 1)
    gates.set(values)
    whole = tiny_velocity(adapted[0])
    gates.set(values[..., None].expand(-1, -1, 3), text_tokens=TEXT_TOKENS)
    torch.testing.assert_close(tiny_velocity(adapted[0]), whole)


def test_each_stream_has_its_own_work(adapted, gates) -> None:
    """Each stream's gate changes something, and alone it is neither nothing nor all."""
    outputs = []
    for stream in range(3):
        values = torch.zeros(BATCH, len(BLOCKS), 3)
        values[..., stream] = 1.0
        gates.set(values, text_tokens=TEXT_TOKENS)
        outputs.append(tiny_velocity(adapted[0]))
    gates.set(rows(0, 0, 0, 0))
    outputs += [tiny_velocity(adapted[0]), adapted[1]]
    for place, one in enumerate(outputs):
        assert not any(torch.equal(one, other) for other in outputs[place + 1 :])


def test_a_missing_stream_is_refused(gates) -> None:
    """Gates for two of three streams are a mistake."""
    with pytest.raises(ValueError, match="with 3 streams each"):
        gates.set(torch.zeros(BATCH, len(BLOCKS), 2), text_tokens=TEXT_TOKENS)
