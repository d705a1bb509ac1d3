"""diffusers' FLUX LoRA training step, written again with diffusers and peft alone.

Source: huggingface/diffusers, examples/dreambooth/train_dreambooth_lora_flux.py, the body of its
training loop, in the script's own order and names. It is a second implementation to measure ours
against, so nothing of ours is imported here. Left out are what the script takes from elsewhere
(encoding pictures and prompts) and what draws at random (noise, timesteps): they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.training_utils import compute_loss_weighting_for_sd3
from peft import LoraConfig
from PIL import Image

_ADAPTER: Final = ".default.weight"
_SPATIAL: Final = 8  # vae_scale_factor of FluxPipeline


@dataclass(frozen=True)
class Settings:
    """The script's arguments of the same names; `target_modules` are PEFT's."""

    rank: int
    lora_alpha: float
    target_modules: Sequence[str]
    learning_rate: float
    adam_weight_decay: float
    max_grad_norm: float
    guidance_scale: float
    weighting_scheme: str


@dataclass(frozen=True)
class Inputs:
    """One batch: latents and noise [B, C, h, w], noise levels [B], prompts [B, T, D] and [B, P]."""

    model_input: torch.Tensor
    noise: torch.Tensor
    sigmas: Sequence[float]
    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor


class Reference:
    """A base model with a LoRA from diffusers' add_adapter, and AdamW as the script makes it."""

    def __init__(self, transformer: FluxTransformer2DModel, settings: Settings) -> None:
        """Put the adapter on the frozen `transformer`; PEFT draws its start."""
        self.settings = settings
        self.transformer = transformer.requires_grad_(False)
        self.transformer.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.lora_alpha,
                init_lora_weights="gaussian",
                target_modules=list(settings.target_modules),
            )
        )
        self.optimizer = torch.optim.AdamW(
            list(self.parameters().values()),
            lr=settings.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=settings.adam_weight_decay,
            eps=1e-8,
        )

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the adapter's matrices under the names that save_lora_weights gives them."""
        return {
            f"transformer.{name.removesuffix(_ADAPTER)}.weight": parameter
            for name, parameter in self.transformer.named_parameters()
            if name.endswith(_ADAPTER)
        }

    def step(self, inputs: Inputs) -> float:
        """Take one optimiser step and return the loss before it; clipped gradients stay in place.

        The noise levels reach the step as the script's do: as timesteps of the scheduler, whose
        table is set to hold them.
        """
        self.optimizer.zero_grad()
        loss = self._loss(inputs)
        torch.autograd.backward([loss])
        torch.nn.utils.clip_grad_norm_(self.parameters().values(), self.settings.max_grad_norm)
        self.optimizer.step()
        return loss.item()

    def _loss(self, inputs: Inputs) -> torch.Tensor:
        model_input, noise = inputs.model_input, inputs.noise
        bsz, channels, height, width = model_input.shape
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
        scheduler.set_timesteps(sigmas=sorted(set(inputs.sigmas), reverse=True))
        levels = torch.tensor(inputs.sigmas)
        indices = [int((scheduler.sigmas - level).abs().argmin()) for level in levels]
        timesteps = scheduler.timesteps[indices]
        step_indices = [(scheduler.timesteps == t).nonzero().item() for t in timesteps]
        sigmas = scheduler.sigmas[step_indices].flatten().view(-1, 1, 1, 1)
        noisy_model_input = (1.0 - sigmas) * model_input + sigmas * noise
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.tensor([self.settings.guidance_scale]).expand(bsz)
        text_ids = torch.zeros(inputs.prompt_embeds.shape[1], 3)
        model_pred = self.transformer(
            hidden_states=FluxPipeline._pack_latents(
                noisy_model_input, bsz, channels, height, width
            ),
            timestep=timesteps / 1000,
            guidance=guidance,
            pooled_projections=inputs.pooled_prompt_embeds,
            encoder_hidden_states=inputs.prompt_embeds,
            txt_ids=text_ids,
            img_ids=FluxPipeline._prepare_latent_image_ids(
                bsz, height // 2, width // 2, model_input.device, model_input.dtype
            ),
            return_dict=False,
        )[0]
        model_pred = FluxPipeline._unpack_latents(
            model_pred, height * _SPATIAL, width * _SPATIAL, _SPATIAL
        )
        weighting = compute_loss_weighting_for_sd3(self.settings.weighting_scheme, sigmas=sigmas)
        target = noise - model_input
        loss = torch.mean(
            (weighting.float() * (model_pred.float() - target.float()) ** 2).reshape(bsz, -1), 1
        )
        return loss.mean()


@torch.no_grad()
def encode_prompts(
    pipeline: FluxPipeline, captions: Sequence[str], text_tokens: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (prompt_embeds [T, D], pooled_prompt_embeds [P]) of each caption."""
    found = []
    for caption in captions:
        tokens, pooled, _ = pipeline.encode_prompt(caption, None, max_sequence_length=text_tokens)
        found.append((tokens[0], pooled[0]))
    return found


@torch.no_grad()
def encode_pictures(
    pipeline: FluxPipeline, pictures: Sequence[Path], size_px: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (mean, std) [C, h, w] of each picture's latents, shifted and scaled."""
    config = pipeline.vae.config
    found = []
    for path in pictures:
        with Image.open(path) as picture:
            square = picture.convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR)
        posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(square)).latent_dist
        mean = (posterior.mean[0] - config.shift_factor) * config.scaling_factor
        found.append((mean, posterior.std[0] * config.scaling_factor))
    return found
