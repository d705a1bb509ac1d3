"""Every optimiser goes on from its saved state to the same bits."""

from __future__ import annotations

import json
import math

import pytest
import torch

from stages.contracts.params import TrainParams
from stages.optimisation.optimiser import build_optimiser, set_learning_rate
from stages.optimisation.optimiser_state import OptimiserState, optimiser_state, restore_optimiser
from tests.optimisation.test_optimiser import ON_CPU, matrices, named, take_steps


def through_a_file(state: OptimiserState) -> OptimiserState:
    """Return what is left of a state after it was written: copies, and what JSON keeps."""
    tensors = {key: tensor.clone() for key, tensor in state.tensors.items()}
    return OptimiserState(tensors, json.loads(json.dumps(state.values)))


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("after", [0, 1, 4])
def test_restored_optimiser_goes_on_to_the_same_bits(
    params: TrainParams, name: str, after: int
) -> None:
    """Moments, counts, Prodigy's distance and schedule-free's weights survive."""
    parameters, others = matrices(), matrices()
    optimiser = build_optimiser(parameters, named(params, name))
    other = build_optimiser(others, named(params, name))
    set_learning_rate(optimiser, 0.3)
    take_steps(optimiser, parameters, 1, after)
    state = through_a_file(optimiser_state(optimiser, parameters))
    with torch.no_grad():
        for key, value in others.items():
            value.copy_(parameters[key])
    restore_optimiser(other, others, state)
    take_steps(optimiser, parameters, after + 1, after + 3)
    take_steps(other, others, after + 1, after + 3)
    assert all(torch.equal(parameters[key], others[key]) for key in parameters)
    ours, theirs = optimiser_state(optimiser, parameters), optimiser_state(other, others)
    assert ours.values == theirs.values
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[key], theirs.tensors[key]) for key in ours.tensors)


def test_state_is_named(params: TrainParams) -> None:
    """Entries bear the parameter's name, or the number of the group that they belong to."""
    parameters = matrices()
    optimiser = build_optimiser(parameters, named(params, "prodigy"))
    take_steps(optimiser, parameters, 1, 2)
    state = optimiser_state(optimiser, parameters)
    assert {"down|exp_avg", "up|p0", "group 0|d_numerator"} <= state.tensors.keys()
    assert {"group 0|d", "group 0|growth_rate"} <= state.values.keys()
    assert state.values["group 0|growth_rate"] == {"float": math.inf.hex()}


def test_numbers_are_kept_to_the_last_bit() -> None:
    """JSON knows no infinity and no tuple; 0.1 + 0.2 is not 0.3."""
    parameters = matrices()
    odd = {"third": 0.1 + 0.2, "least": 5e-324, "pair": (1, (True, None)), "list": [1.5, "text"]}
    one, two = (torch.optim.SGD(list(parameters.values()), lr=0.1) for _ in "12")
    one.param_groups[0].update(odd)
    restore_optimiser(two, parameters, through_a_file(optimiser_state(one, parameters)))
    restored = two.param_groups[0]
    assert {key: restored[key] for key in odd} == odd
    assert isinstance(restored["pair"], tuple)
    assert isinstance(restored["list"], list)


def test_state_of_an_unknown_kind_is_refused() -> None:
    """What cannot be kept would be lost without a word."""
    parameters = matrices()
    optimiser = torch.optim.SGD(list(parameters.values()), lr=0.1)
    optimiser.state[parameters["up"]]["seen"] = {3}
    with pytest.raises(TypeError, match="SGD keeps seen as <class 'set'>"):
        optimiser_state(optimiser, parameters)
