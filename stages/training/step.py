"""One optimiser step: draws, loss, gradient, update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from stages.contracts.errors import Problem, TrainingError
from stages.contracts.params import TrainParams
from stages.training.batches import Draw, draw_sample, samples_of_step
from stages.training.encoded import Encoded
from stages.training.objective import assemble, flow_losses
from stages.training.optimiser import learning_rate, set_learning_rate

_REMEDY = (
    "Lower train.learning_rate or train.gradient_clip, and look at the picture named; "
    "the run goes on from its last state."
)


@dataclass(frozen=True)
class Trainee:
    """What a step changes: the adapter's matrices on `transformer`, and their optimiser."""

    transformer: FluxTransformer2DModel
    parameters: Mapping[str, nn.Parameter]
    optimiser: torch.optim.Optimizer


@dataclass(frozen=True)
class StepResult:
    """Loss and gradient norm before the update and before clipping, and the rate applied."""

    loss: float
    gradient_norm: float
    learning_rate: float


def take_step(trainee: Trainee, data: Encoded, params: TrainParams, step: int) -> StepResult:
    """Update the adapter with the batch of `step` (the first is 1).

    Raises:
        TrainingError: the loss or its gradient is not finite; the adapter is left as it was.
    """
    names, draws = _draw_batch(data, params, step)
    transformer = trainee.transformer
    batch = assemble(draws, transformer.device, transformer.dtype)
    losses = flow_losses(transformer, batch, params.guidance)
    _require_finite("loss", losses.tolist(), step, names, draws)
    loss = losses.mean()
    trainee.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward([loss])
    norm = nn.utils.clip_grad_norm_(trainee.parameters.values(), params.gradient_clip).item()
    _require_finite("gradient norm", [norm] * len(draws), step, names, draws)
    rate = learning_rate(step, params)
    set_learning_rate(trainee.optimiser, rate)
    trainee.optimiser.step()
    return StepResult(loss.item(), norm, rate)


def _draw_batch(
    data: Encoded, params: TrainParams, step: int
) -> tuple[tuple[str, ...], tuple[Draw, ...]]:
    """Return the names and draws of a step's pictures."""
    samples = samples_of_step(step, params.batch, len(data.training), params.seed)
    draws = tuple(
        draw_sample(
            data.training[sample.picture],
            data.empty,
            sample.epoch,
            params.seed,
            timesteps=params.timesteps,
            dropout=params.caption_dropout,
        )
        for sample in samples
    )
    return tuple(data.training[sample.picture].name for sample in samples), draws


def _require_finite(
    what: str, values: Sequence[float], step: int, names: Sequence[str], draws: Sequence[Draw]
) -> None:
    problems = [
        Problem(
            f"step {step}, picture {name}, sigma {draw.sigma:.4f}", f"{what} is {value}", _REMEDY
        )
        for name, draw, value in zip(names, draws, values, strict=True)
        if not math.isfinite(value)
    ]
    if problems:
        raise TrainingError(f"Training cannot go on after step {step - 1}", problems)
