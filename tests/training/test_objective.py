"""What the loss is made of; test_parity.py compares it with diffusers' own."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import FluxTransformer2DModel

from stages.encoding.encoded import Encoded
from stages.families.flow import predict_velocity
from stages.families.latents import pack
from stages.training.batches import Draw, draw_sample
from stages.training.noise_levels import NoiseLevels
from stages.training.objective import assemble, flow_losses

CPU = torch.device("cpu")


def draws_of(encoded: Encoded, epoch: int) -> list[Draw]:
    """Return the draws of three pictures."""
    return [
        draw_sample(
            picture, encoded.empty, epoch, 0, levels=NoiseLevels("sigmoid", 0.0, 1.0), dropout=0.0
        )
        for picture in encoded.training[:3]
    ]


def test_target_leads_from_latents_to_noise(encoded: Encoded) -> None:
    """x_t lies on the straight line: one target forward is the noise, back are the latents."""
    draws = draws_of(encoded, 0)
    batch = assemble(draws, CPU, torch.float32)
    level = batch.sigmas[:, None, None]
    noise = pack(torch.stack([draw.noise for draw in draws]))
    clean = pack(torch.stack([draw.clean for draw in draws]))
    torch.testing.assert_close(batch.noised + (1 - level) * batch.target, noise)
    torch.testing.assert_close(batch.noised - level * batch.target, clean)


def test_one_loss_per_sample(tiny_flux: FluxTransformer2DModel, encoded: Encoded) -> None:
    """A sample's loss does not depend on what else is in the batch."""
    draws = draws_of(encoded, 0)
    with torch.no_grad():
        together = flow_losses(tiny_flux, assemble(draws, CPU, torch.float32), 1.0)
        alone = flow_losses(tiny_flux, assemble(draws[1:2], CPU, torch.float32), 1.0)
    assert together.shape == (3,)
    torch.testing.assert_close(together[1:2], alone)


def test_guidance_reaches_the_model(tiny_flux: FluxTransformer2DModel, encoded: Encoded) -> None:
    """Training guidance 1.0 and 3.5 are two different objectives."""
    batch = assemble(draws_of(encoded, 0), CPU, torch.float32)
    with torch.no_grad():
        one, other = (flow_losses(tiny_flux, batch, value) for value in (1.0, 3.5))
    assert not torch.equal(one, other)


def test_loss_is_float32_on_a_bfloat16_base(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded
) -> None:
    """Squares of 16-bit numbers would lose what the loss is about."""
    batch = assemble(draws_of(encoded, 0), CPU, torch.bfloat16)
    losses = flow_losses(tiny_flux.to(torch.bfloat16), batch, 1.0)
    assert losses.dtype == torch.float32
    assert batch.noised.dtype == batch.target.dtype == torch.float32


def test_token_weights_weigh_a_samples_own_tokens(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded
) -> None:
    """The loss is the weighted mean over tokens; a sample without weights counts wholly."""
    draws = draws_of(encoded, 0)
    plain = assemble(draws, CPU, torch.float32)
    ones = [replace(draw, token_weights=torch.ones(4)) for draw in draws]
    losses = flow_losses(tiny_flux, plain, 1.0)
    torch.testing.assert_close(
        flow_losses(tiny_flux, assemble(ones, CPU, torch.float32), 1.0), losses
    )
    first = replace(draws[0], token_weights=torch.tensor([4.0, 0.0, 0.0, 0.0]))
    weighted = assemble([first, *draws[1:]], CPU, torch.float32)
    velocity = predict_velocity(tiny_flux, plain.noised, plain.sigmas, plain.text, 1.0, plain.grid)
    alone = (velocity - plain.target)[0, 0].square().mean()
    found = flow_losses(tiny_flux, weighted, 1.0)
    torch.testing.assert_close(found[0], alone)
    torch.testing.assert_close(found[1:], losses[1:])
