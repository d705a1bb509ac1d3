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
    trainee.optimiser.zero_grad(set_to_none=True)
    loss = 0.0
    for members in _of_one_shape(draws):
        batch = assemble([draws[m] for m in members], transformer.device, transformer.dtype)
        losses = flow_losses(transformer, batch, params.guidance)
        named = [(names[m], draws[m]) for m in members]
        _require_finite("loss", losses.tolist(), step, named)
        # Gradients add up: the whole is that of the mean over the step's samples.
        part = losses.mean() * (len(members) / len(draws))
        torch.autograd.backward([part])
        loss += part.item()
    norm = nn.utils.clip_grad_norm_(trainee.parameters.values(), params.gradient_clip).item()
    _require_finite(
        "gradient norm", [norm] * len(draws), step, list(zip(names, draws, strict=True))
    )
    rate = learning_rate(step, params)
    set_learning_rate(trainee.optimiser, rate)
    trainee.optimiser.step()
    return StepResult(loss, norm, rate)


def _draw_batch(
    data: Encoded, params: TrainParams, step: int
) -> tuple[tuple[str, ...], tuple[Draw, ...]]:
    """Return the names and draws of a step's pictures."""
    repeats = [picture.repeats for picture in data.training]
    samples = samples_of_step(step, params.batch, repeats, params.seed)
    draws = tuple(
        draw_sample(
            data.training[sample.picture],
            data.empty,
            sample.use,
            params.seed,
            timesteps=params.timesteps,
            dropout=params.caption_dropout,
        )
        for sample in samples
    )
    return tuple(data.training[sample.picture].name for sample in samples), draws


def _of_one_shape(draws: Sequence[Draw]) -> list[list[int]]:
    """Return the places of the draws, those of equal shape together, in the order of the first."""
    groups: dict[torch.Size, list[int]] = {}
    for place, draw in enumerate(draws):
        groups.setdefault(draw.clean.shape, []).append(place)
    return list(groups.values())


def _require_finite(
    what: str, values: Sequence[float], step: int, named: Sequence[tuple[str, Draw]]
) -> None:
    problems = [
        Problem(
            f"step {step}, picture {name}, sigma {draw.sigma:.4f}", f"{what} is {value}", _REMEDY
        )
        for (name, draw), value in zip(named, values, strict=True)
        if not math.isfinite(value)
    ]
    if problems:
        raise TrainingError(f"Training cannot go on after step {step - 1}", problems)
