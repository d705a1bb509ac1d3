"""The velocity field of a FLUX transformer and the noise levels that a picture passes through.

A noised latent is x_t = (1 - t) z + t eps with t = sigma in [0, 1]; the model predicts the velocity
eps - z (flow matching, arXiv 2210.02747; Stable Diffusion 3, arXiv 2403.03206).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from stages.families.latents import VAE_REDUCTION
from stages.families.text import TextBatch

_TIMESTEPS = 1000  # FLUX's embedder counts sigma in thousandths
_ID_AXES = 3


def predict_velocity(
    transformer: FluxTransformer2DModel,
    packed: torch.Tensor,
    sigmas: torch.Tensor,
    text: TextBatch,
    guidance: float | None,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return the predicted velocity [B, N, 4C] of noised tokens, called as FluxPipeline calls it.

    Args:
        transformer: the base model, with or without an adapter.
        packed: noised tokens [B, N, 4C].
        sigmas: noise levels [B] in [0, 1].
        text: prompts, on the transformer's device.
        guidance: value for the guidance embedding, or None to leave its embedder out; ignored by
            models that have none.
        grid: rows and columns of tokens; None for square pictures.
    """
    dtype, device = working_dtype(transformer), packed.device
    side = round(packed.shape[1] ** 0.5)
    rows, columns = grid or (side, side)
    guidances = None
    if transformer.config.guidance_embeds and guidance is not None:
        guidances = torch.full([len(packed)], guidance, device=device, dtype=torch.float32)
    bypassed = transformer.config.guidance_embeds and guidance is None
    with _without_guidance(transformer) if bypassed else nullcontext():
        velocity: torch.Tensor = transformer(
            hidden_states=packed.to(dtype),
            timestep=(sigmas.to(device) * _TIMESTEPS).to(dtype) / _TIMESTEPS,
            guidance=guidances,
            pooled_projections=text.pooled.to(dtype),
            encoder_hidden_states=text.tokens.to(dtype),
            txt_ids=torch.zeros(text.tokens.shape[1], _ID_AXES, device=device, dtype=dtype),
            img_ids=picture_ids(rows, columns).to(device, dtype),
            return_dict=False,
        )[0]
    return velocity


def working_dtype(transformer: FluxTransformer2DModel) -> torch.dtype:
    """Return the number format that the transformer computes in, as `transformer.dtype` does.

    That property looks at every module before it answers, which takes as long as several layers of
    nano-flux: too long for every step. A bias is never quantised.
    """
    dtype: torch.dtype = transformer.x_embedder.bias.dtype
    return dtype


@contextmanager
def _without_guidance(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Let the model see time and text alone, as one without a guidance embedder does.

    Flex.1-alpha is trained so (ostris/ai-toolkit, toolkit/models/flux.py): its embedder was learnt
    afterwards, and a LoRA that is trained without it can be sampled with it.
    """
    embedder = transformer.time_text_embed
    embedder.forward = partial(CombinedTimestepTextProjEmbeddings.forward, embedder)
    try:
        yield
    finally:
        del embedder.forward


def picture_ids(rows: int, columns: int) -> torch.Tensor:
    """Return the rotary position (0, row, column) [rows * columns, 3] of each token."""
    ids = torch.zeros(rows, columns, _ID_AXES)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, _ID_AXES)


def sampling_sigmas(folder: Path, steps: int, size_px: int) -> torch.Tensor:
    """Return the noise levels [steps + 1] from near 1 down to 0 that FluxPipeline would use.

    The shift towards high noise grows with the number of tokens where the model's scheduler
    asks for it (FLUX.1-dev does, schnell does not).
    """
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    config = scheduler.config
    tokens = (size_px // VAE_REDUCTION // 2) ** 2
    shift = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
    sigmas: torch.Tensor = scheduler.sigmas
    return sigmas


@torch.no_grad()
def denoise(
    transformer: FluxTransformer2DModel,
    packed: torch.Tensor,
    sigmas: torch.Tensor,
    text: TextBatch,
    guidance: float,
) -> torch.Tensor:
    """Return the finished tokens [B, N, 4C] that noise `packed` [B, N, 4C] becomes.

    Args:
        transformer: the model whose velocity is followed.
        packed: noise, in the transformer's dtype and on its device.
        sigmas: noise levels [steps + 1] from near 1 down to 0.
        text: B prompts, on the transformer's device.
        guidance: value for the guidance embedding.
    """
    for sigma, following in pairwise(sigmas):
        levels = sigma.expand(len(packed))
        velocity = predict_velocity(transformer, packed, levels, text, guidance)
        # Each step is taken in float32 and rounded to the model's dtype, as the scheduler does.
        packed = (packed.float() + (following - sigma) * velocity).to(velocity.dtype)
    return packed
