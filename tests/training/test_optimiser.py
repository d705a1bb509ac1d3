"""AdamW, warm-up, and the optimiser's state as tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.contracts.params import TrainParams
from stages.training.optimiser import (
    build_optimiser,
    learning_rate,
    optimiser_tensors,
    restore_optimiser,
    set_learning_rate,
)


def matrices() -> dict[str, nn.Parameter]:
    """Return two small parameters with a gradient."""
    parameters = {"one": nn.Parameter(torch.ones(3, 2)), "two": nn.Parameter(torch.ones(4))}
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 0.5)
    return parameters


def test_rate_rises_linearly_and_stays(params: TrainParams) -> None:
    """Warm-up of four steps: a quarter of the rate each, then all of it."""
    four = params.model_copy(update={"warmup_steps": 4, "learning_rate": 1.0})
    assert [learning_rate(step, four) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_no_warm_up(params: TrainParams) -> None:
    """Zero warm-up steps train at the full rate from the first step on."""
    assert learning_rate(1, params.model_copy(update={"warmup_steps": 0})) == params.learning_rate


def test_rate_of_zero_changes_nothing(params: TrainParams) -> None:
    """The rate set before a step is the one it is taken with."""
    parameters = matrices()
    optimiser = build_optimiser(parameters, params)
    set_learning_rate(optimiser, 0.0)
    optimiser.step()
    assert torch.equal(parameters["one"], torch.ones(3, 2))
    set_learning_rate(optimiser, 0.1)
    optimiser.step()
    assert not torch.equal(parameters["one"], torch.ones(3, 2))


def test_restored_optimiser_goes_on_to_the_same_bits(params: TrainParams) -> None:
    """Moments and step count survive the way through plain tensors."""
    parameters, others = matrices(), matrices()
    optimiser, other = build_optimiser(parameters, params), build_optimiser(others, params)
    optimiser.step()
    tensors = {key: t.clone() for key, t in optimiser_tensors(optimiser, parameters).items()}
    assert sorted(tensors)[:3] == ["one|exp_avg", "one|exp_avg_sq", "one|step"]
    with torch.no_grad():
        for name, parameter in others.items():
            parameter.copy_(parameters[name])
    restore_optimiser(other, others, tensors)
    optimiser.step()
    other.step()
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)


def test_state_that_is_no_tensor_is_refused() -> None:
    """Another optimiser's state would be lost without a word."""
    parameters = matrices()
    optimiser = torch.optim.SGD(list(parameters.values()), lr=0.1)
    optimiser.state[parameters["one"]]["count"] = 3
    with pytest.raises(TypeError, match="SGD keeps count as"):
        optimiser_tensors(optimiser, parameters)
