"""Learning rates per block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stages.adapters.attach import lora_parameters
from stages.adapters.keys import parse_key
from stages.contracts.blocks import BlockId
from stages.contracts.params import BlockSetting, TrainParams
from stages.families.architecture import block_of
from stages.optimisation.optimiser import build_optimiser, set_learning_rate
from stages.optimisation.parameter_groups import FACTOR, parameter_groups, rate_factor
from stages.training.loop import Run
from stages.training.step import take_step
from stages.training.trainee import make_trainee

FAST = BlockSetting(blocks=["double.1", "single.0-1"], rank=2, alpha=2.0, learning_rate=0.01)
SLOW = BlockSetting(blocks=["single.2"], rank=2, alpha=2.0, learning_rate=1e-5)


def block(name: str) -> BlockId:
    """Return the block of a matrix."""
    return block_of(parse_key(name).module)


def test_one_group_where_no_block_has_a_rate(make_run: Callable[..., Run]) -> None:
    """All matrices in model order, as before there were rates per block."""
    run = make_run()
    parameters = lora_parameters(run.transformer)
    groups = parameter_groups(parameters, run.params)
    assert [len(group["params"]) for group in groups] == [len(parameters)]
    assert groups[0][FACTOR] == 1.0


def test_every_matrix_has_its_blocks_rate(make_run: Callable[..., Run]) -> None:
    """Factor times train.learning_rate is the setting's rate; each matrix is in one group."""
    run = make_run(change={"block_settings": [FAST, SLOW], "learning_rate": 0.001})
    parameters = lora_parameters(run.transformer)
    groups = parameter_groups(parameters, run.params)
    rates = {
        id(parameter): group[FACTOR] * 0.001 for group in groups for parameter in group["params"]
    }
    assert len(rates) == len(parameters) == sum(len(group["params"]) for group in groups)
    for name, parameter in parameters.items():
        own = {"double.1": 0.01, "single.0": 0.01, "single.1": 0.01, "single.2": 1e-5}
        assert rates[id(parameter)] == pytest.approx(own.get(str(block(name)), 0.001))


def test_the_schedule_scales_all_groups(params: TrainParams, make_run: Callable[..., Run]) -> None:
    """Half the run's rate is half of every block's."""
    run = make_run(change={"block_settings": [FAST], "learning_rate": 0.001})
    optimiser = build_optimiser(lora_parameters(run.transformer), run.params)
    set_learning_rate(optimiser, 0.0005)
    assert sorted(group["lr"] for group in optimiser.param_groups) == pytest.approx([0.0005, 0.005])


def test_first_step_of_adam_moves_each_block_by_its_rate(make_run: Callable[..., Run]) -> None:
    """AdamW's first update of B is the rate in every entry: the rate reaches the weights."""
    change = {
        "block_settings": [FAST, SLOW],
        "learning_rate": 0.001,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "gradient_clip": 1e9,
    }
    run = make_run(change=change)
    parameters = lora_parameters(run.transformer)
    trainee = make_trainee(run.transformer, run.params)
    take_step(trainee, run.data, run.params, 1)
    for name, parameter in parameters.items():
        if "lora_B" in name:
            expected = 0.001 * rate_factor(name, run.params)
            assert parameter.abs().max().item() == pytest.approx(expected, rel=1e-2)
            assert torch.count_nonzero(parameter) > 0
