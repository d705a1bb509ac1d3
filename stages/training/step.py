"""One optimiser step: draws, loss, gradient, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from stages.contracts.errors import Problem, TrainingError
from stages.contracts.params import TrainParams
from stages.training.batches import Draw, Sample, draw_sample, samples_of_step
from stages.training.distribution import add_gradients, gathered, total, world
from stages.training.encoded import Encoded
from stages.training.lora_forward import rank_dropout, rank_factors, total_rank
from stages.training.objective import assemble, flow_losses
from stages.training.optimiser import set_learning_rate
from stages.training.schedule import learning_rate
from stages.training.trainee import Trainee

_REMEDY = (
    "Lower train.learning_rate or train.gradient_clip, and look at the picture named; "
    "the run goes on from its last state."
)


@dataclass(frozen=True)
class StepResult:
    """Loss and gradient norm before the update and before clipping, and the rate applied."""

    loss: float
    gradient_norm: float
    learning_rate: float


def take_step(trainee: Trainee, data: Encoded, params: TrainParams, step: int) -> StepResult:
    """Update the adapter with the pictures of `step` (the first is 1), and its average.

    They go through the model in passes of at most `batch`, `accumulation` of them where all
    pictures have one shape; the update is that of the mean loss over all of them.

    Raises:
        TrainingError: the loss or its gradient is not finite; the adapter is left as it was.
    """
    samples = _samples(data, params, step)
    names = [data.training[sample.picture].name for sample in samples]
    draws = [_draw(data, params, sample) for sample in samples]
    transformer = trainee.transformer
    trainee.optimiser.zero_grad(set_to_none=True)
    loss = 0.0
    problems: list[Problem] = []
    for members in _passes(draws, params.batch):
        batch = assemble([draws[m] for m in members], transformer.device, transformer.dtype)
        with _dropout(trainee, data, params, [samples[m] for m in members]):
            losses = flow_losses(transformer, batch, params.guidance)
            named = [(names[m], draws[m]) for m in members]
            problems += _not_finite("loss", losses.tolist(), step, named)
            # Gradients add up: the whole is that of the mean over the step's samples, those of
            # other processes too.
            weights = torch.tensor([draws[m].weight for m in members], device=losses.device)
            part = (losses * weights).mean() * (len(members) / _pictures(params))
            torch.autograd.backward([part])
        loss += part.item()
    loss = total(loss)
    _require_none(problems, step)
    add_gradients(trainee.parameters)
    norm = nn.utils.clip_grad_norm_(trainee.parameters.values(), params.gradient_clip).item()
    named = list(zip(names, draws, strict=True))
    _require_none(_not_finite("gradient norm", [norm] * len(draws), step, named), step)
    rate = set_learning_rate(trainee.optimiser, learning_rate(step, params))
    trainee.optimiser.step()
    if trainee.average is not None:
        trainee.average.update(step)
    return StepResult(loss, norm, rate)


def _pictures(params: TrainParams) -> int:
    """Return how many pictures all processes together train on in one step."""
    return params.batch * params.accumulation


def _samples(data: Encoded, params: TrainParams, step: int) -> Sequence[Sample]:
    """Return this process's share of a step's samples."""
    repeats = [picture.repeats for picture in data.training]
    return world().share(samples_of_step(step, _pictures(params), repeats, params.seed))


def _draw(data: Encoded, params: TrainParams, sample: Sample) -> Draw:
    return draw_sample(
        data.training[sample.picture],
        data.empty,
        sample.use,
        params.seed,
        timesteps=params.timesteps,
        dropout=params.caption_dropout,
    )


def _dropout(
    trainee: Trainee, data: Encoded, params: TrainParams, samples: Sequence[Sample]
) -> AbstractContextManager[None]:
    """Return the context of one pass, in which each sample goes without ranks of its own."""
    share = params.adapter_dropout
    if share == 0:
        return nullcontext()
    ranks = total_rank(trainee.transformer)
    key = "adapter dropout"
    factors = [
        rank_factors(ranks, share, params.seed, key, sample.use, data.training[sample.picture].name)
        for sample in samples
    ]
    return rank_dropout(trainee.transformer, torch.stack(factors))


def _passes(draws: Sequence[Draw], batch: int) -> list[list[int]]:
    """Return the places of the draws, at most `batch` of one shape together, in order."""
    groups: dict[torch.Size, list[int]] = {}
    for place, draw in enumerate(draws):
        groups.setdefault(draw.clean.shape, []).append(place)
    return [
        group[start : start + batch]
        for group in groups.values()
        for start in range(0, len(group), batch)
    ]


def _not_finite(
    what: str, values: Sequence[float], step: int, named: Sequence[tuple[str, Draw]]
) -> list[Problem]:
    return [
        Problem(
            f"step {step}, picture {name}, sigma {draw.sigma:.4f}", f"{what} is {value}", _REMEDY
        )
        for (name, draw), value in zip(named, values, strict=True)
        if not math.isfinite(value)
    ]


def _require_none(problems: Sequence[Problem], step: int) -> None:
    """Raise TrainingError, in all processes alike, where any of them has a problem."""
    if total(len(problems)):
        raise TrainingError(f"Training cannot go on after step {step - 1}", gathered(problems))
