"""What a run changes from step to step, and how that goes into a state file and comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from stages.adapters.attach import lora_parameters
from stages.adapters.growth import plan_growth, put_grown
from stages.contracts.params import TrainParams
from stages.families.architecture import Architecture
from stages.optimisation.average import Average
from stages.optimisation.optimiser import build_optimiser, evaluation_weights
from stages.optimisation.optimiser_state import OptimiserState, optimiser_state, restore_optimiser
from stages.optimisation.parameter_values import put_weights
from stages.optimisation.phases import Phase
from stages.training.lora_forward import shorten_lora_forward
from stages.training.state import Contents
from stages.training.targets import plan_lora

_ADAPTER: Final = "adapter."
_AVERAGE: Final = "average."
_OPTIMISER: Final = "optimiser."


@dataclass(frozen=True)
class Trainee:
    """The adapter's matrices on `transformer`, their optimiser, and their average if one is kept.

    The rate's course and the random draws are functions of params, step and picture, so they have
    no state.
    """

    transformer: FluxTransformer2DModel
    parameters: Mapping[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    average: Average | None


def count_parameters(transformer: FluxTransformer2DModel) -> int:
    """Return how many numbers the adapter on `transformer` has."""
    return sum(matrix.numel() for matrix in lora_parameters(transformer).values())


def make_trainee(transformer: FluxTransformer2DModel, params: TrainParams) -> Trainee:
    """Return the trainee at its start; `transformer` carries the trainable adapter.

    Raises:
        TrainingError: the optimiser cannot run on this machine.
    """
    parameters = lora_parameters(transformer)
    average = Average(parameters, params.ema_decay) if params.ema_decay > 0 else None
    return Trainee(transformer, parameters, build_optimiser(parameters, params), average)


def enter_phase(trainee: Trainee, phase: Phase) -> Trainee:
    """Return the trainee at the start of a phase after the first, on the same model.

    The adapter is the one that the phase before ends with, its Delta W kept (see adapters/growth):
    of schedule-free AdamW the average that it keeps in checkpoints. The moving average goes on, its
    own Delta W kept in the same way; the optimiser is a new one.

    Raises:
        HardwareError: the optimiser cannot run on this machine.
        ValueError: a rank would fall.
    """
    transformer, params = trainee.transformer, phase.params
    loras = plan_lora(Architecture.from_config(transformer.config), params)
    growth = plan_growth(transformer, loras, params.seed, "phase", phase.number)
    with evaluation_weights(trainee.optimiser, trainee.parameters):
        weights = growth.of(trainee.parameters)
    put_grown(transformer, loras, weights)
    shorten_lora_forward(transformer)
    grown = make_trainee(transformer, params)
    if grown.average is not None and trainee.average is not None:
        grown.average.restore(growth.of(trainee.average.weights))
    return grown


def trainee_contents(trainee: Trainee) -> Contents:
    """Return all that the next step depends on, the step's number apart."""
    state = optimiser_state(trainee.optimiser, trainee.parameters)
    average = trainee.average.weights if trainee.average else {}
    return Contents(
        {
            **_named(_ADAPTER, trainee.parameters),
            **_named(_AVERAGE, average),
            **_named(_OPTIMISER, state.tensors),
        },
        state.values,
    )


def restore_trainee(trainee: Trainee, contents: Contents) -> None:
    """Bring a trainee at its start to where `contents` was taken."""
    put_weights(trainee.parameters, _part(_ADAPTER, contents.tensors))
    if trainee.average is not None:
        trainee.average.restore(_part(_AVERAGE, contents.tensors))
    state = OptimiserState(_part(_OPTIMISER, contents.tensors), contents.values)
    restore_optimiser(trainee.optimiser, trainee.parameters, state)


def _named(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _part(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
