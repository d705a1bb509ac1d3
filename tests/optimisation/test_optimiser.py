"""Each optimiser takes the steps that its paper says, and gives the weights it means to give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from stages.contracts.errors import HardwareError
from stages.contracts.params import TrainParams
from stages.families.noise import keyed_normal
from stages.optimisation.optimiser import (
    build_optimiser,
    evaluation_weights,
    require_optimiser,
    set_learning_rate,
)

ON_CPU = ("adamw", "adafactor", "lion", "prodigy", "schedule-free-adamw")
STEPS = 5
RATE, DECAY = 0.01, 0.1


def named(params: TrainParams, optimiser: str, **changes: object) -> TrainParams:
    """Return `params` with an optimiser."""
    update = {"optimiser": optimiser, "learning_rate": RATE, "weight_decay": DECAY, **changes}
    return params.model_copy(update=update)


def matrices() -> dict[str, nn.Parameter]:
    """Return an A, which is random, and a B, which is zero."""
    down = nn.Parameter(keyed_normal([4, 6], "down"))
    return {"down": down, "up": nn.Parameter(torch.zeros(5, 4))}


def gradient(name: str, shape: Sequence[int], step: int) -> torch.Tensor:
    """Return the gradient of a step."""
    return keyed_normal(shape, "gradient", name, step)


def take_steps(
    optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], first: int, last: int
) -> None:
    """Take the steps from `first` to `last` with their gradients."""
    for step in range(first, last + 1):
        for name, parameter in parameters.items():
            parameter.grad = gradient(name, parameter.shape, step)
        optimiser.step()


def lion(start: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """ArXiv 2302.06675, program 1."""
    weights, momentum = start.clone(), torch.zeros_like(start)
    for g in gradients:
        weights = weights - RATE * ((0.9 * momentum + 0.1 * g).sign() + DECAY * weights)
        momentum = 0.99 * momentum + 0.01 * g
    return weights


def adafactor(start: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """ArXiv 1804.04235, algorithm 4 with an absolute rate in place of algorithm 5's."""
    weights, rows, columns = start.clone(), torch.zeros(start.shape[0]), torch.zeros(start.shape[1])
    for step, g in enumerate(gradients, start=1):
        beta = 1 - step**-0.8
        rows = beta * rows + (1 - beta) * (g.square() + 1e-30).mean(1)
        columns = beta * columns + (1 - beta) * (g.square() + 1e-30).mean(0)
        update = g / (rows[:, None] * columns[None] / rows.mean()).sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        weights = weights - RATE * DECAY * weights - RATE * update
    return weights


def schedule_free(start: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """ArXiv 2405.15682, algorithm 1: returns the average x, at a constant rate."""
    x, z, second = start.clone(), start.clone(), torch.zeros_like(start)
    for step, g in enumerate(gradients, start=1):
        y = 0.1 * z + 0.9 * x
        second = 0.999 * second + 0.001 * g.square()
        scaled = g / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        z = z - RATE * (scaled + DECAY * y)
        x = (1 - 1 / step) * x + z / step
    return x


@pytest.mark.parametrize(
    ("name", "formula"),
    [("lion", lion), ("adafactor", adafactor), ("schedule-free-adamw", schedule_free)],
)
def test_follows_its_paper(
    params: TrainParams,
    name: str,
    formula: Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor],
) -> None:
    """Five steps on A and on B, which starts at zero, are those of the formula."""
    parameters = matrices()
    starts = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimiser = build_optimiser(parameters, named(params, name))
    set_learning_rate(optimiser, RATE)
    take_steps(optimiser, parameters, 1, STEPS)
    with evaluation_weights(optimiser, parameters):
        for key, parameter in parameters.items():
            gradients = [gradient(key, parameter.shape, step) for step in range(1, STEPS + 1)]
            torch.testing.assert_close(parameter.detach(), formula(starts[key], gradients))


def test_prodigy_follows_its_paper(params: TrainParams) -> None:
    """ArXiv 2306.06101, algorithm 4, over A and B together; d grows from 1e-6 to a real rate."""
    parameters = matrices()
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimiser = build_optimiser(parameters, named(params, "prodigy", learning_rate=1.0))
    weights = {name: value.clone() for name, value in start.items()}
    first, second, sums = ({name: torch.zeros_like(v) for name, v in start.items()} for _ in "mvs")
    d, numerator, beta3 = 1e-6, 0.0, math.sqrt(0.999)
    for step in range(1, STEPS + 1):
        assert set_learning_rate(optimiser, 1.0) == pytest.approx(d, rel=1e-4)
        take_steps(optimiser, parameters, step, step)
        rate = d * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        numerator *= beta3
        for name, value in weights.items():
            g = gradient(name, value.shape, step)
            numerator += d / 1e-6 * rate * (g * (start[name] - value)).sum().item()
            first[name] = 0.9 * first[name] + 0.1 * d * g
            second[name] = 0.999 * second[name] + 0.001 * d * d * g.square()
            sums[name] = beta3 * sums[name] + d / 1e-6 * d * g
        estimate = numerator / sum(value.abs().sum().item() for value in sums.values())
        d = max(d, estimate)
        for name, value in weights.items():
            update = first[name] / (second[name].sqrt() + d * 1e-8)
            weights[name] = value - rate * DECAY * value - rate * update
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), weights[name])


@pytest.mark.parametrize("name", ON_CPU)
def test_rate_of_the_step_is_what_counts(params: TrainParams, name: str) -> None:
    """The schedule's rate, not the one that the optimiser was built with."""
    one, other = matrices(), matrices()
    for parameters, built in ((one, 0.01), (other, 0.5)):
        optimiser = build_optimiser(parameters, named(params, name, learning_rate=built))
        set_learning_rate(optimiser, 0.02)
        take_steps(optimiser, parameters, 1, 1)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(one["down"], matrices()["down"])


@pytest.mark.parametrize("name", [name for name in ON_CPU if name != "schedule-free-adamw"])
def test_trained_weights_are_those_to_use(params: TrainParams, name: str) -> None:
    """Only schedule-free AdamW means other weights than those it trains."""
    parameters = matrices()
    optimiser = build_optimiser(parameters, named(params, name))
    take_steps(optimiser, parameters, 1, 2)
    before = {key: value.detach().clone() for key, value in parameters.items()}
    with evaluation_weights(optimiser, parameters):
        assert all(torch.equal(parameters[key], value) for key, value in before.items())


def test_looking_changes_no_bit(params: TrainParams) -> None:
    """How often a schedule-free run is measured does not decide what it learns."""
    watched, unwatched = matrices(), matrices()
    for parameters in (watched, unwatched):
        optimiser = build_optimiser(parameters, named(params, "schedule-free-adamw"))
        for step in range(1, STEPS + 1):
            take_steps(optimiser, parameters, step, step)
            if parameters is watched:
                training = parameters["down"].detach().clone()
                with evaluation_weights(optimiser, parameters):
                    assert step == 1 or not torch.equal(parameters["down"], training)
    assert all(torch.equal(watched[key], unwatched[key]) for key in watched)


def test_eight_bit_without_a_gpu_is_refused(
    params: TrainParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, with all that is lacking and what else would do."""
    monkeypatch.setattr("stages.runtime.machine.find_spec", lambda _: None)
    with pytest.raises(HardwareError) as caught:
        require_optimiser("adamw8bit", torch.device("cpu"))
    message = str(caught.value)
    assert "(2 problems)" in message
    assert "needs the package bitsandbytes, which is not installed" in message
    assert "pip install 'blocklens[gpu]'" in message
    assert "needs a CUDA device, this run's is cpu" in message
    assert "adafactor" in message
    with pytest.raises(HardwareError, match="needs a CUDA device"):
        build_optimiser(matrices(), named(params, "adamw8bit"))
    for name in ON_CPU:
        require_optimiser(name, torch.device("cpu"))
