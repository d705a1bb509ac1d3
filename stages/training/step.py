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
from stages.encoding.encoded import Encoded
from stages.families.flow import working_dtype
from stages.optimisation.optimiser import set_learning_rate
from stages.optimisation.schedule import learning_rate, pictures_per_step
from stages.training.batches import Draw, Sample, draw_step, picture_of, step_samples
from stages.training.distribution import add_gradients, gathered, total, world
from stages.training.lora_forward import rank_dropout, rank_factors, total_rank
from stages.training.noise_levels import loss_weights
from stages.training.objective import Batch, assemble, flow_losses
from stages.training.preservation import preservation_losses
from stages.training.trainee import Trainee

_REMEDY = (
    "Lower train.learning_rate or train.gradient_clip, and look at the picture named; "
    "the run goes on from its last state."
)


@dataclass(frozen=True)
class StepResult:
    """Loss and gradient norm before the update and before clipping, and the rate applied.

    `loss` is the mean over the step's samples with their weights; `regularisation_loss` that of the
    regularisation ones without, `preservation_loss` that of output preservation without its weight;
    None where there were no such samples.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    regularisation_loss: float | None = None
    preservation_loss: float | None = None


def take_step(trainee: Trainee, data: Encoded, params: TrainParams, step: int) -> StepResult:
    """Update the adapter with the pictures of `step` (the first is 1), and its average.

    They go through the model in passes of at most `batch`, `accumulation` of them where all
    pictures have one shape; the update is that of the mean loss over all of them.

    Raises:
        TrainingError: the loss or its gradient is not finite; the adapter is left as it was.
    """
    samples = world().share(step_samples(data, params, step))
    names = [picture_of(data, sample).name for sample in samples]
    draws = draw_step(data, params, samples)
    transformer = trainee.transformer
    device, dtype = transformer.device, working_dtype(transformer)
    trainee.optimiser.zero_grad(set_to_none=True)
    loss = 0.0
    left_alone: list[float] = []
    kept: list[float] = []
    problems: list[Problem] = []
    for members in _passes(draws, params.batch):
        batch = assemble([draws[m] for m in members], device, dtype)
        with _dropout(trainee, data, params, [samples[m] for m in members]):
            losses = flow_losses(transformer, batch, params.guidance)
            named = [(names[m], draws[m]) for m in members]
            problems += _not_finite("loss", losses.tolist(), step, named)
            # Gradients add up: the whole is that of the mean over the step's samples, those of
            # other processes too.
            weights = torch.tensor([draws[m].weight for m in members], device=losses.device)
            weights = weights * loss_weights(batch.sigmas, params)
            part = (losses * weights).mean() * (len(members) / pictures_per_step(params))
            torch.autograd.backward([part])
        loss += part.item()
        left_alone += [
            value
            for m, value in zip(members, losses.tolist(), strict=True)
            if samples[m].regularisation
        ]
        kept += _preserve(trainee, batch, [draws[m] for m in members], params)
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
    return StepResult(
        loss,
        norm,
        rate,
        regularisation_loss=_mean_of_all(left_alone) if data.regularisation else None,
        preservation_loss=_mean_of_all(kept) if params.output_preservation else None,
    )


def _preserve(
    trainee: Trainee, batch: Batch, draws: Sequence[Draw], params: TrainParams
) -> list[float]:
    """Add the gradient of output preservation, and return its losses, without their weight."""
    if not params.output_preservation:
        return []
    differences = preservation_losses(trainee.transformer, batch, draws, params.guidance)
    if len(differences):
        part = params.output_preservation * differences.sum() / pictures_per_step(params)
        torch.autograd.backward([part])
    return differences.tolist()


def _mean_of_all(values: Sequence[float]) -> float | None:
    """Return the mean over the values of all processes, None if there are none."""
    count = total(len(values))
    return total(sum(values)) / count if count else None


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
        rank_factors(ranks, share, params.seed, key, sample.use, picture_of(data, sample).name)
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
