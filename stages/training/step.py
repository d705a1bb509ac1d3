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
from stages.training.batches import Draw, draw_step, picture_of, step_samples
from stages.training.distribution import add_gradients, gathered, total, world
from stages.training.encoded import Encoded
from stages.training.noise_levels import loss_weights
from stages.training.objective import assemble, flow_losses
from stages.training.optimiser import learning_rate, set_learning_rate
from stages.training.preservation import preservation_losses

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
    """Update the adapter with the batch of `step` (the first is 1).

    Raises:
        TrainingError: the loss or its gradient is not finite; the adapter is left as it was.
    """
    samples = world().share(step_samples(data, params, step))
    names = [picture_of(data, sample).name for sample in samples]
    draws = draw_step(data, params, samples)
    transformer = trainee.transformer
    trainee.optimiser.zero_grad(set_to_none=True)
    loss = 0.0
    left_alone: list[float] = []
    kept: list[float] = []
    problems: list[Problem] = []
    for members in _of_one_shape(draws):
        batch = assemble([draws[m] for m in members], transformer.device, transformer.dtype)
        losses = flow_losses(transformer, batch, params.guidance)
        named = [(names[m], draws[m]) for m in members]
        problems += _not_finite("loss", losses.tolist(), step, named)
        # Gradients add up: the whole is that of the mean over the step's samples, those of other
        # processes too.
        weights = torch.tensor([draws[m].weight for m in members], device=losses.device)
        weights = weights * loss_weights(batch.sigmas, params)
        part = (losses * weights).mean() * (len(members) / params.batch)
        torch.autograd.backward([part])
        loss += part.item()
        left_alone += [
            value
            for m, value in zip(members, losses.tolist(), strict=True)
            if samples[m].regularisation
        ]
        if params.output_preservation:
            differences = preservation_losses(
                transformer, batch, [draws[m] for m in members], params.guidance
            )
            if len(differences):
                part = params.output_preservation * differences.sum() / params.batch
                torch.autograd.backward([part])
                kept += differences.tolist()
    loss = total(loss)
    _require_none(problems, step)
    add_gradients(trainee.parameters)
    norm = nn.utils.clip_grad_norm_(trainee.parameters.values(), params.gradient_clip).item()
    named = list(zip(names, draws, strict=True))
    _require_none(_not_finite("gradient norm", [norm] * len(draws), step, named), step)
    rate = learning_rate(step, params)
    set_learning_rate(trainee.optimiser, rate)
    trainee.optimiser.step()
    return StepResult(
        loss,
        norm,
        rate,
        regularisation_loss=_mean_of_all(left_alone) if data.regularisation else None,
        preservation_loss=_mean_of_all(kept) if params.output_preservation else None,
    )


def _mean_of_all(values: Sequence[float]) -> float | None:
    """Return the mean over the values of all processes, None if there are none."""
    count = total(len(values))
    return total(sum(values)) / count if count else None


def _of_one_shape(draws: Sequence[Draw]) -> list[list[int]]:
    """Return the places of the draws, those of equal shape together, in the order of the first."""
    groups: dict[torch.Size, list[int]] = {}
    for place, draw in enumerate(draws):
        groups.setdefault(draw.clean.shape, []).append(place)
    return list(groups.values())


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
