"""A phase begins with the adapter that the one before ended with, and an optimiser of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.adapters.attach import extract_adapter, lora_parameters
from stages.adapters.files import read_adapter
from stages.adapters.module import Adapter
from stages.contracts.params import PhaseParams, TrainParams
from stages.judging.scoring import put_adapter
from stages.optimisation.optimiser import evaluation_weights, set_learning_rate
from stages.optimisation.phases import phases_of
from stages.training.loop import Run, average_name, checkpoint_name, train_adapter
from stages.training.step import take_step
from stages.training.trainee import Trainee, enter_phase, make_trainee
from stages.training.validation import measure
from tests.optimisation.test_optimiser import ON_CPU

MakeRun = Callable[..., Run]
SECOND = PhaseParams(rank=8, alpha=8.0, steps=4, learning_rate=0.003)
PHASED = {"steps": 3, "phases": [SECOND], "ema_decay": 0.5}


def names_of(journal_files: dict[str, str]) -> set[str]:
    """Return a run's checkpoints."""
    return {name for name in journal_files if name.startswith("checkpoints/")}


def delta_of(adapter: Adapter) -> torch.Tensor:
    """Return Delta W of all modules, one after the other, float64."""
    deltas = [
        (pair.scale * (pair.up.double() @ pair.down.double())).flatten()
        for pair in adapter.modules.values()
    ]
    return torch.cat(deltas)


def at_the_end_of_the_first(run: Run) -> Trainee:
    """Return the trainee after all steps of the first phase."""
    trainee = make_trainee(run.transformer, run.params)
    for step in range(1, phases_of(run.params)[0].last + 1):
        take_step(trainee, run.data, run.params, step)
    return trainee


def test_first_phase_is_the_run_without_the_others(make_run: MakeRun, tmp_path: Path) -> None:
    """Up to the boundary the weights and losses are those of a run that ends there."""
    whole = train_adapter(make_run(change=PHASED), tmp_path / "whole")
    alone = train_adapter(make_run(change={**PHASED, "phases": []}), tmp_path / "alone")
    assert whole.history[:4] == alone.history
    for name in (checkpoint_name(3), average_name(3)):
        assert whole.files[name] == alone.files[name]
    expected = {name(step) for step in (3, 4, 7) for name in (checkpoint_name, average_name)}
    assert names_of(whole.files) == expected
    ranks = [read_adapter(tmp_path / "whole" / checkpoint_name(step)).rank for step in (3, 4, 7)]
    assert ranks == [2, 8, 8]


@pytest.mark.parametrize("optimiser", ON_CPU)
def test_nothing_changes_at_a_boundary_but_the_shape(make_run: MakeRun, optimiser: str) -> None:
    """The adapter and its average have the same Delta W, and the model the same loss.

    Of schedule-free AdamW the adapter is the average of the points at which it took gradients.
    """
    run = make_run(change={**PHASED, "optimiser": optimiser, "scheduler": "constant"})
    trainee = at_the_end_of_the_first(run)
    with evaluation_weights(trainee.optimiser, trainee.parameters):
        before = delta_of(extract_adapter(run.transformer, {}))
        loss = measure(run.transformer, run.data, run.params).validation_loss
    assert trainee.average is not None
    with trainee.average.applied():
        averaged = delta_of(extract_adapter(run.transformer, {}))
    grown = enter_phase(trainee, phases_of(run.params)[1])
    assert extract_adapter(run.transformer, {}).rank == 8
    torch.testing.assert_close(
        delta_of(extract_adapter(run.transformer, {})), before, rtol=0, atol=1e-15
    )
    assert measure(run.transformer, run.data, run.params).validation_loss == pytest.approx(
        loss, rel=1e-6
    )
    assert grown.average is not None
    with grown.average.applied():
        assert not torch.equal(before, averaged)
        torch.testing.assert_close(
            delta_of(extract_adapter(run.transformer, {})), averaged, rtol=0, atol=1e-15
        )


def test_a_phase_has_an_optimiser_of_its_own(make_run: MakeRun) -> None:
    """No moment of the phase before is in its first update, which AdamW makes as large as its rate.

    And the new ranks learn: their columns of B were zero.
    """
    run = make_run(change={**PHASED, "warmup_steps": 0, "weight_decay": 0.0})
    trainee = enter_phase(at_the_end_of_the_first(run), phases_of(run.params)[1])
    assert not trainee.optimiser.state
    before = {name: matrix.detach().clone() for name, matrix in trainee.parameters.items()}
    result = take_step(trainee, run.data, run.params, 4)
    assert result.learning_rate == SECOND.learning_rate
    for name, matrix in trainee.parameters.items():
        moved = (matrix.detach() - before[name]).abs()
        assert moved.amax() <= SECOND.learning_rate * 1.001
        if "lora_B" in name:
            assert moved[:, 2:].amax() > 0.5 * SECOND.learning_rate


def test_settings_of_blocks_hold_in_every_phase(make_run: MakeRun) -> None:
    """Rank, alpha and rate of their own stay; the others' change."""
    change = {**PHASED, "block_settings": [], "warmup_steps": 0}
    own = {"blocks": ["single"], "rank": 3, "alpha": 6.0, "learning_rate": 0.0005}
    params = TrainParams.model_validate(
        {**make_run(change=change).params.model_dump(), "block_settings": [own]}
    )
    run = make_run(change={**change, "block_settings": params.block_settings})
    trainee = enter_phase(at_the_end_of_the_first(run), phases_of(run.params)[1])
    modules = extract_adapter(run.transformer, {}).modules
    shapes = {name.startswith("single_"): (pair.rank, pair.alpha) for name, pair in modules.items()}
    assert shapes == {True: (3, 6.0), False: (8, 8.0)}
    set_learning_rate(trainee.optimiser, SECOND.learning_rate)
    rates = sorted(group["lr"] for group in trainee.optimiser.param_groups)
    assert rates == pytest.approx([0.0005, SECOND.learning_rate])


def test_checkpoints_of_all_phases_are_put_on_the_last_ones_model(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """As scoring does: the file's Delta W to the bit, and its loss as in training."""
    run = make_run(change=PHASED)
    journal = train_adapter(run, tmp_path)
    for step in (7, 3, 4):
        adapter = read_adapter(tmp_path / checkpoint_name(step))
        put_adapter(run.transformer, adapter)
        on_model = extract_adapter(run.transformer, {}).modules
        for module, pair in adapter.modules.items():
            assert torch.equal(on_model[module].down[: pair.rank], pair.down)
            assert torch.equal(on_model[module].up[:, : pair.rank], pair.up)
            assert not on_model[module].down[pair.rank :].any()
            assert not on_model[module].up[:, pair.rank :].any()
        measured = measure(run.transformer, run.data, run.params).validation_loss
        loss = journal.history[step].validation_loss
        if loss is not None:
            assert measured == pytest.approx(loss, rel=1e-6)


def test_the_log_says_where_a_phase_begins(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with what changes."""
    with caplog.at_level(logging.INFO):
        train_adapter(make_run(change=PHASED), tmp_path)
    said = [line for line in caplog.messages if line.startswith("phase ")]
    assert said == ["phase 2: rank 8, alpha 8, learning rate 0.003, until step 7"]


def test_trainable_numbers_are_the_last_phases(make_run: MakeRun, tmp_path: Path) -> None:
    """The model ends with four times the numbers it began with."""
    run = make_run(change=PHASED)
    before = sum(matrix.numel() for matrix in lora_parameters(run.transformer).values())
    train_adapter(run, tmp_path)
    after = sum(matrix.numel() for matrix in lora_parameters(run.transformer).values())
    assert after == 4 * before
