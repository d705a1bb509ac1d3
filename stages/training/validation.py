"""Validation loss: held-out pictures at fixed noise and fixed noise levels.

Nothing here depends on the run's seed, so that two runs with other seeds, rates or ranks are
measured on the very same points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from diffusers import FluxTransformer2DModel

from stages.families.noise import keyed_normal
from stages.training.batches import Draw
from stages.training.encoded import Picture
from stages.training.objective import assemble, flow_losses


def validation_draws(pictures: Sequence[Picture], sigmas: Sequence[float]) -> Iterator[Draw]:
    """Yield one draw per picture and noise level: the posterior's mean, and noise of its own."""
    for picture in pictures:
        for sigma in sigmas:
            shape = picture.latents.mean.shape
            noise = keyed_normal(shape, "validation", picture.name, repr(sigma))
            yield Draw(picture.latents.mean, noise, sigma, picture.text)


@torch.no_grad()
def validation_losses(
    transformer: FluxTransformer2DModel, draws: Sequence[Draw], *, batch: int, guidance: float
) -> list[float]:
    """Return the loss of each draw, in order, up to `batch` of one shape in a forward pass."""
    device, dtype = transformer.device, transformer.dtype
    losses: list[float] = []
    for _, equal in groupby(draws, key=lambda draw: draw.clean.shape):
        group = list(equal)
        for start in range(0, len(group), batch):
            part = assemble(group[start : start + batch], device, dtype)
            losses += flow_losses(transformer, part, guidance).tolist()
    return losses
