"""Losses at fixed points: held-out and training pictures, fixed noise, fixed noise levels.

Nothing here depends on the run's seed, so that two runs with other seeds, rates or ranks are
measured on the very same points. Training pictures (the probe) are measured just as held-out ones
are: what the adapter gains on the former and not on the latter is learnt by heart.

The loss of a noise level says what is being learnt: at high noise the layout, at low noise fine
texture (arXiv 2403.03206, section 3.1, on why levels are not alike). A mean over all levels hides
one that gets worse, so it is told per band as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import torch
from diffusers import FluxTransformer2DModel

from stages.contracts.errors import Problem, TrainingError
from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded, Picture
from stages.families.noise import keyed_normal
from stages.training.batches import Draw, token_weights
from stages.training.objective import assemble, flow_losses

BANDS: Final = {"low": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "high": (2 / 3, 1.0)}
"""Noise levels from (included) and to (excluded) of each band."""

_REMEDY_BASE: Final = (
    "The adapter has no effect yet: look at the picture named and run `dvc repro encode`; "
    "if every picture is named, the base model's weights are broken."
)
_REMEDY: Final = (
    "Lower train.learning_rate or train.gradient_clip: the base model's loss was finite here."
)


@dataclass(frozen=True)
class Measures:
    """Mean losses at the fixed points; None where there is no point.

    `validation_loss` of all held-out points, then of those in each band; `probe_loss` of the
    training pictures among the fixed points.
    """

    validation_loss: float
    validation_loss_low: float | None
    validation_loss_middle: float | None
    validation_loss_high: float | None
    probe_loss: float | None


def measure(
    transformer: FluxTransformer2DModel, data: Encoded, params: TrainParams, step: int = 0
) -> Measures:
    """Return the losses of the model as it is, adapter included, at all fixed points.

    `step` is the last one taken, 0 for the base model.

    Raises:
        TrainingError: a loss is not finite; each such picture and noise level is named.
    """
    sigmas = params.validation_sigmas

    def losses(pictures: Sequence[Picture]) -> list[float]:
        floor = params.mask_floor if params.masked_loss else None
        draws = list(validation_draws(pictures, sigmas, floor))
        return validation_losses(transformer, draws, batch=params.batch, guidance=params.guidance)

    held_out = losses(data.validation)
    probed = probe_pictures(data.training, params.probe_pictures)
    probe = losses(probed)
    problems = _not_finite("held-out", data.validation, sigmas, held_out, step)
    problems += _not_finite("training", probed, sigmas, probe, step)
    if problems:
        raise TrainingError(f"Training cannot go on after step {step}", problems)
    levels = sigmas * len(data.validation)
    by_band = {name: _mean_within(held_out, levels, band) for name, band in BANDS.items()}
    return Measures(
        validation_loss=sum(held_out) / len(held_out),
        validation_loss_low=by_band["low"],
        validation_loss_middle=by_band["middle"],
        validation_loss_high=by_band["high"],
        probe_loss=_mean(probe),
    )


def probe_pictures(pictures: Sequence[Picture], count: int) -> tuple[Picture, ...]:
    """Return `count` of the training pictures, or all: those whose names' hashes come first.

    A picture more or less in the set changes at most one of them, and no run's seed does.
    """
    ordered = sorted(pictures, key=lambda picture: hashlib.sha256(picture.name.encode()).digest())
    return tuple(ordered[:count])


def validation_draws(
    pictures: Sequence[Picture], sigmas: Sequence[float], mask_floor: float | None = None
) -> Iterator[Draw]:
    """Yield one draw per picture and noise level: the posterior's mean, and noise of its own.

    Each picture is taken at its first size, and weighed by its mask where `mask_floor` is given
    (`batches.token_weights`): what is measured is what is trained.
    """
    for picture in pictures:
        for sigma in sigmas:
            shape = picture.latents.mean.shape
            noise = keyed_normal(shape, "validation", picture.name, repr(sigma))
            weights = token_weights(picture.latents, mask_floor)
            yield Draw(picture.latents.mean, noise, sigma, picture.text, token_weights=weights)


@torch.no_grad()
def validation_losses(
    transformer: FluxTransformer2DModel,
    draws: Sequence[Draw],
    *,
    batch: int,
    guidance: float | None,
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


def _not_finite(
    kind: str,
    pictures: Sequence[Picture],
    sigmas: Sequence[float],
    losses: Sequence[float],
    step: int,
) -> list[Problem]:
    """Return a problem per loss that is not finite; they are in the order of the draws."""
    points = [(picture.name, sigma) for picture in pictures for sigma in sigmas]
    return [
        Problem(
            f"step {step}, picture {name}, sigma {sigma:.4f}",
            f"loss is {loss} in the validation after it ({kind} picture)",
            _REMEDY if step else _REMEDY_BASE,
        )
        for (name, sigma), loss in zip(points, losses, strict=True)
        if not math.isfinite(loss)
    ]


def _mean_within(
    losses: Sequence[float], levels: Sequence[float], band: tuple[float, float]
) -> float | None:
    low, high = band
    return _mean([loss for loss, at in zip(losses, levels, strict=True) if low <= at < high])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
