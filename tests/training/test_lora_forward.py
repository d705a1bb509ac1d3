"""The short forward is PEFT's, in fewer operations."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import detach, extract_adapter, lora_layers, lora_parameters
from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded
from stages.training.batches import draw_sample
from stages.training.lora_forward import (
    rank_dropout,
    rank_factors,
    shorten_lora_forward,
    total_rank,
)
from stages.training.noise_levels import NoiseLevels
from stages.training.objective import assemble, flow_losses
from tests.training.conftest import attach


def losses_and_gradients(
    transformer: FluxTransformer2DModel, encoded: Encoded
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the losses of three pictures and the gradient of their mean."""
    draws = [
        draw_sample(
            picture, encoded.empty, 0, 0, levels=NoiseLevels("sigmoid", 0.0, 1.0), dropout=0.0
        )
        for picture in encoded.training[:3]
    ]
    parameters = lora_parameters(transformer)
    losses = flow_losses(transformer, assemble(draws, transformer.device, transformer.dtype), 1.0)
    gradients = torch.autograd.grad(losses.mean(), list(parameters.values()))
    return losses.detach(), dict(zip(parameters, gradients, strict=True))


def attach_with_effect(transformer: FluxTransformer2DModel, params: TrainParams) -> None:
    """Put an adapter on the model whose B is not zero."""
    attach(transformer, params)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in lora_parameters(transformer).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)


@pytest.mark.parametrize("alpha", [2.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_peft(
    tiny_flux: FluxTransformer2DModel,
    encoded: Encoded,
    params: TrainParams,
    alpha: float,
    dtype: torch.dtype,
) -> None:
    """Losses and gradients agree with PEFT's layers to float32 rounding, on any base dtype."""
    attach_with_effect(tiny_flux.to(dtype), params.model_copy(update={"alpha": alpha}))
    expected, expected_gradients = losses_and_gradients(tiny_flux, encoded)
    shorten_lora_forward(tiny_flux)
    losses, gradients = losses_and_gradients(tiny_flux, encoded)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-3}
    )
    torch.testing.assert_close(losses, expected, **tolerance)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected_gradients[name], **tolerance)


def test_dropped_ranks_are_those_of_a_smaller_adapter(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """Of three samples one keeps all ranks, one goes without the second, one without any."""
    attach_with_effect(tiny_flux, params)
    shorten_lora_forward(tiny_flux)
    expected = []
    for kept in ([1.0, 1.0], [2.0, 0.0], [0.0, 0.0]):
        adapter = copy.deepcopy(tiny_flux)
        with torch.no_grad():
            for name, parameter in lora_parameters(adapter).items():
                if "lora_B" in name:
                    parameter.mul_(torch.tensor(kept))
        shorten_lora_forward(adapter)
        expected.append(losses_and_gradients(adapter, encoded)[0][len(expected)])
    assert total_rank(tiny_flux) == 2 * 46
    factors = torch.tensor([[1.0, 1.0] * 46, [2.0, 0.0] * 46, [0.0, 0.0] * 46])
    with rank_dropout(tiny_flux, factors):
        losses, _ = losses_and_gradients(tiny_flux, encoded)
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-5, atol=1e-6)
    whole, _ = losses_and_gradients(tiny_flux, encoded)
    assert whole[0] == losses[0]
    assert whole[1] != losses[1]


def test_a_shared_down_has_one_draw(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """To sd-scripts q, k and v are one layer with one mask: no rank is dropped in one of them."""
    attach_with_effect(tiny_flux, params.model_copy(update={"targets": "kohya"}))
    shorten_lora_forward(tiny_flux)
    downs = [name for name in lora_parameters(tiny_flux) if "lora_A" in name]
    assert total_rank(tiny_flux) == 2 * len(downs) < 2 * len(lora_layers(tiny_flux))
    kept = [[float(number % 3 != 0), float(number % 2)] for number in range(len(downs))]
    smaller = copy.deepcopy(tiny_flux)
    with torch.no_grad():
        parameters = lora_parameters(smaller)
        for name, ranks in zip(downs, kept, strict=True):
            parameters[name].mul_(torch.tensor(ranks)[:, None])
    shorten_lora_forward(smaller)
    expected, _ = losses_and_gradients(smaller, encoded)
    with rank_dropout(tiny_flux, torch.tensor(kept).flatten().repeat(3, 1)):
        losses, _ = losses_and_gradients(tiny_flux, encoded)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_factors_keep_the_mean() -> None:
    """A quarter of the ranks is dropped and the rest made up for it, by a key of the sample."""
    factors = rank_factors(4000, 0.25, 1, "picture")
    assert sorted(set(factors.tolist())) == [0.0, pytest.approx(4 / 3)]
    assert factors.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(factors, rank_factors(4000, 0.25, 1, "picture"))
    assert not torch.equal(factors, rank_factors(4000, 0.25, 2, "picture"))


def test_dropout_needs_the_short_forward(
    tiny_flux: FluxTransformer2DModel, params: TrainParams
) -> None:
    """PEFT's own forward would train on all ranks without a word."""
    attach_with_effect(tiny_flux, params)
    refused = pytest.raises(RuntimeError, match="needs shorten_lora_forward")
    with refused, rank_dropout(tiny_flux, torch.ones(1, 92)):
        pass


def test_is_gone_with_the_adapter(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """After detach the model is the base again: nothing of ours is left on it."""
    attach_with_effect(tiny_flux, params)
    shorten_lora_forward(tiny_flux)
    assert extract_adapter(tiny_flux, {}).rank == params.rank
    detach(tiny_flux)
    assert not [layer for layer in tiny_flux.modules() if "forward" in vars(layer)]
