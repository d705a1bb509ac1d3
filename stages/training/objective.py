"""The flow-matching loss of one batch.

x_t = (1 - t) z + t eps, target eps - z, loss |v(x_t, t) - target|^2 in float32, mean over tokens
and channels (rectified flow, arXiv 2209.03003; FLUX LoRA step of diffusers,
examples/dreambooth/train_dreambooth_lora_flux.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel

from stages.families.flow import predict_velocity
from stages.families.latents import pack
from stages.families.text import TextBatch, batch_text
from stages.training.batches import Draw


@dataclass(frozen=True)
class Batch:
    """Noised tokens and target [B, N, 4C] float32, sigmas [B] float32, and prompts.

    `grid` is the rows and columns of tokens, the same for all samples of the batch.
    `token_weights` [B, N] float32 weigh each sample's tokens; None where all count alike.
    """

    noised: torch.Tensor
    target: torch.Tensor
    sigmas: torch.Tensor
    text: TextBatch
    grid: tuple[int, int]
    token_weights: torch.Tensor | None = None


def assemble(draws: Sequence[Draw], device: torch.device, dtype: torch.dtype) -> Batch:
    """Return the batch of `draws`, all of one shape, on `device`; prompts in `dtype`."""
    height, width = draws[0].clean.shape[-2:]
    clean = pack(torch.stack([draw.clean for draw in draws])).to(device)
    noise = pack(torch.stack([draw.noise for draw in draws])).to(device)
    sigmas = torch.tensor([draw.sigma for draw in draws], dtype=torch.float32, device=device)
    level = sigmas[:, None, None]
    return Batch(
        noised=(1 - level) * clean + level * noise,
        target=noise - clean,
        sigmas=sigmas,
        text=batch_text([draw.text for draw in draws]).to(device, dtype),
        grid=(height // 2, width // 2),
        token_weights=_token_weights(draws, clean.shape[1], device),
    )


def flow_losses(
    transformer: FluxTransformer2DModel, batch: Batch, guidance: float | None
) -> torch.Tensor:
    """Return the mean squared error [B] of each sample's predicted velocity, float32.

    Where the batch has token weights, the mean over a sample's tokens is weighted by them. The
    batch's loss is their mean. `guidance` is the value of the guidance embedding; None leaves the
    embedder out.
    """
    velocity = predict_velocity(
        transformer, batch.noised, batch.sigmas, batch.text, guidance, batch.grid
    )
    errors = (velocity.float() - batch.target).square()
    if batch.token_weights is None:
        return errors.mean(dim=(1, 2))
    return (errors.mean(dim=2) * batch.token_weights).mean(dim=1)


def _token_weights(draws: Sequence[Draw], tokens: int, device: torch.device) -> torch.Tensor | None:
    if all(draw.token_weights is None for draw in draws):
        return None
    ones = torch.ones(tokens)
    rows = [ones if draw.token_weights is None else draw.token_weights for draw in draws]
    return torch.stack(rows).to(device)
