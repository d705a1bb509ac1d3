"""The loss against diffusers' own FLUX LoRA training step, re-stated here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig

from stages.adapters.attach import lora_parameters
from stages.contracts.params import TrainParams
from stages.families.architecture import Architecture, lora_modules
from stages.families.flow import predict_velocity
from stages.families.latents import pack
from stages.training.batches import Draw, draw_sample
from stages.training.encoded import Encoded
from stages.training.noise_levels import NoiseLevels
from stages.training.objective import assemble, flow_losses
from stages.training.optimiser import build_optimiser
from tests.training.conftest import attach

CPU = torch.device("cpu")


def draws_of(encoded: Encoded, epoch: int) -> list[Draw]:
    """Return the draws of three pictures."""
    return [
        draw_sample(
            picture, encoded.empty, epoch, 0, levels=NoiseLevels("sigmoid", 0.0, 1.0), dropout=0.0
        )
        for picture in encoded.training[:3]
    ]


def reference_loss(
    transformer: FluxTransformer2DModel, draws: Sequence[Draw], guidance_scale: float
) -> torch.Tensor:
    """Return the loss as examples/dreambooth/train_dreambooth_lora_flux.py computes it.

    Re-stated from the script's training loop (diffusers 0.42): weighting scheme "none" has weight
    1, and its latents are already shifted and scaled.
    """
    model_input = torch.stack([draw.clean for draw in draws])
    noise = torch.stack([draw.noise for draw in draws])
    batch, channels, height, width = model_input.shape
    latent_image_ids = FluxPipeline._prepare_latent_image_ids(
        batch, height // 2, width // 2, CPU, torch.float32
    )
    timesteps = torch.tensor([draw.sigma for draw in draws]) * 1000
    sigmas = (timesteps / 1000).view(-1, 1, 1, 1)
    noisy_model_input = (1.0 - sigmas) * model_input + sigmas * noise
    packed = FluxPipeline._pack_latents(noisy_model_input, batch, channels, height, width)
    prompt_embeds = torch.stack([draw.text.tokens for draw in draws])
    model_pred = transformer(
        hidden_states=packed,
        timestep=timesteps / 1000,
        guidance=torch.tensor([guidance_scale]).expand(batch),
        pooled_projections=torch.stack([draw.text.pooled for draw in draws]),
        encoder_hidden_states=prompt_embeds,
        txt_ids=torch.zeros(prompt_embeds.shape[1], 3),
        img_ids=latent_image_ids,
        return_dict=False,
    )[0]
    model_pred = FluxPipeline._unpack_latents(model_pred, height * 8, width * 8, 8)
    target = noise - model_input
    squares = (model_pred.float() - target.float()) ** 2
    return squares.reshape(batch, -1).mean(1).mean()


def reference_model(
    ours: FluxTransformer2DModel, base: FluxTransformer2DModel, params: TrainParams
) -> FluxTransformer2DModel:
    """Return `base` with an adapter put on by diffusers' own add_adapter, started like ours."""
    modules = lora_modules(Architecture.from_config(base.config), params.targets)
    base.add_adapter(
        LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=list(modules))
    )
    theirs, mine = lora_parameters(base), lora_parameters(ours)
    assert theirs.keys() == mine.keys()
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(mine[name])
    return base


def test_ten_steps_equal_diffusers_training_step(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams
) -> None:
    """Loss, gradients and weights agree to 1e-5 with the reference over ten optimiser steps."""
    base = copy.deepcopy(tiny_flux)
    attach(tiny_flux, params)
    reference = reference_model(tiny_flux, base, params)
    mine, theirs = lora_parameters(tiny_flux), lora_parameters(reference)
    ours = build_optimiser(mine, params)
    other = torch.optim.AdamW(
        list(theirs.values()),
        lr=params.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=params.weight_decay,
        foreach=False,
    )
    for epoch in range(10):
        draws = draws_of(encoded, epoch)
        ours.zero_grad()
        other.zero_grad()
        batch = assemble(draws, CPU, torch.float32)
        loss = flow_losses(tiny_flux, batch, params.guidance).mean()
        expected = reference_loss(reference, draws, params.guidance)
        assert abs(loss.item() - expected.item()) < 1e-5
        torch.autograd.backward([loss, expected])
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-5)
        ours.step()
        other.step()
    assert any(parameter.abs().max() > 0 for name, parameter in mine.items() if "lora_B" in name)


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
