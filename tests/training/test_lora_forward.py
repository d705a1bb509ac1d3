"""The short forward is PEFT's, in fewer operations."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import detach, extract_adapter, lora_parameters
from stages.contracts.params import TrainParams
from stages.training.batches import draw_sample
from stages.training.encoded import Encoded
from stages.training.lora_forward import shorten_lora_forward
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


def test_is_gone_with_the_adapter(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """After detach the model is the base again: nothing of ours is left on it."""
    attach_with_effect(tiny_flux, params)
    shorten_lora_forward(tiny_flux)
    assert extract_adapter(tiny_flux, {}).rank == params.rank
    detach(tiny_flux)
    assert not [layer for layer in tiny_flux.modules() if "forward" in vars(layer)]
