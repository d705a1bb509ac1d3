"""AdamW on the adapter's matrices, its learning rate, and its state as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import nn

from stages.contracts.params import TrainParams
from stages.training.parameter_groups import parameter_groups, set_group_rates

_SEPARATOR: Final = "|"  # occurs in no parameter name


def build_optimiser(
    parameters: Mapping[str, nn.Parameter], params: TrainParams
) -> torch.optim.Optimizer:
    """Return AdamW (arXiv 1711.05101) with torch's own betas and epsilon, in one fused kernel."""
    return torch.optim.AdamW(
        parameter_groups(parameters, params),
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        fused=True,
    )


def learning_rate(step: int, params: TrainParams) -> float:
    """Return the rate of a step (the first is 1): linear from 0 during warm-up, then constant."""
    if step >= params.warmup_steps:
        return params.learning_rate
    return params.learning_rate * step / params.warmup_steps


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give all of the optimiser's parameters the rate of the step to come.

    Blocks with a rate of their own have the same multiple of it at every step.
    """
    set_group_rates(optimiser, rate)


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as tensors called `<parameter>|<entry>`.

    Raises:
        TypeError: the optimiser keeps something else than tensors.
    """
    tensors = {}
    for name, parameter in parameters.items():
        for entry, value in optimiser.state[parameter].items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{type(optimiser).__name__} keeps {entry} as {type(value)}")
            tensors[f"{name}{_SEPARATOR}{entry}"] = value
    return tensors


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Give the optimiser the state that `optimiser_tensors` returned.

    The entries are put in place as they are: `load_state_dict` would cast them.
    """
    for key, value in tensors.items():
        name, entry = key.split(_SEPARATOR)
        parameter = parameters[name]
        optimiser.state[parameter][entry] = value.to(parameter.device, copy=True)
