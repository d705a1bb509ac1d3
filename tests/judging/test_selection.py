"""The choice of a checkpoint."""

from __future__ import annotations

import pytest

from stages.contracts.errors import ParamsError
from stages.contracts.params import PhaseParams, TrainParams
from stages.judging.candidates import Candidate
from stages.judging.selection import checkpoint_steps, choose_checkpoint, require_checkpoints
from stages.training.state import Journal, Row


def journal(losses: dict[int, float], averages: dict[int, float] | None = None) -> Journal:
    """Return a journal with these validation losses by step, and those of moving averages."""
    averages = averages or {}
    rows = [
        Row(step, 1.0, 1.0, 0.1, losses.get(step), validation_loss_ema=averages.get(step))
        for step in range(7)
    ]
    return Journal(6, rows, {})


def raw(*steps: int) -> set[Candidate]:
    """Return the checkpoints of these steps."""
    return {Candidate(step) for step in steps}


LOSSES = {0: 2.0, 2: 1.0, 3: 0.5, 4: 1.0, 6: 1.5}


def test_best_is_the_earliest_of_lowest_loss() -> None:
    """Step 3 is lower, but was not kept; of two equal ones the earlier is less overfitted."""
    choice = choose_checkpoint(journal(LOSSES), raw(2, 4, 6), "best")
    assert (choice.candidate.step, choice.validation_loss, choice.improvement) == (2, 1.0, 0.5)


def test_last() -> None:
    """Who asks for the last gets it, with its own loss."""
    choice = choose_checkpoint(journal(LOSSES), raw(2, 4, 6), "last")
    assert (choice.candidate.step, choice.improvement) == (6, 0.25)


@pytest.mark.parametrize(("losses", "kept"), [(LOSSES, set()), ({2: 1.0}, {Candidate(2)})])
def test_nothing_to_choose_from(losses: dict[int, float], kept: set[Candidate]) -> None:
    """Without a measured checkpoint, or a base model to compare with, there is no choice."""
    with pytest.raises(ValueError, match="nothing to choose from"):
        choose_checkpoint(journal(losses), kept, "best")


def test_a_step_that_was_asked_for() -> None:
    """Whatever its loss."""
    choice = choose_checkpoint(journal(LOSSES), raw(2, 4, 6), 4)
    assert (choice.candidate.step, choice.validation_loss) == (4, 1.0)
    with pytest.raises(ValueError, match="nothing to choose from"):
        choose_checkpoint(journal(LOSSES), raw(2, 4, 6), 3)


def test_best_is_not_a_collapsed_one() -> None:
    """A low loss does not help where the pictures are empty; if all are, the lowest loss stays."""
    losses = {0: 2.0, 2: 1.0, 4: 0.5, 6: 1.5}
    choice = choose_checkpoint(journal(losses), raw(2, 4, 6), "best", raw(4))
    assert choice.candidate.step == 2
    assert choice.reason.endswith("step 4 left out: collapsed")
    choice = choose_checkpoint(journal(losses), raw(2, 4, 6), "best", raw(2, 4, 6))
    assert choice.candidate.step == 4
    assert choice.reason.endswith("all checkpoints collapsed")


def test_reason_is_in_words_with_its_numbers() -> None:
    """The line that the log, metrics.json and the report show."""
    losses = {0: 0.5, 2: 0.3, 4: 0.2, 6: 0.21}
    best = choose_checkpoint(journal(losses), raw(2, 4, 6), "best")
    assert best.reason == (
        "step 4 of 6: lowest validation loss (0.2), 60 % below base; step 6 was 5.0 % higher"
    )
    last = choose_checkpoint(journal(losses), raw(2, 4, 6), "last")
    assert last.reason == (
        "step 6 of 6: the last one train.select asks for; validation loss (0.21), 58 % below base; "
        "step 4 was 4.8 % lower"
    )
    alone = choose_checkpoint(journal({0: 0.5, 6: 0.6}), raw(6), 6)
    assert alone.reason == (
        "step 6 of 6: the one train.select asks for; validation loss (0.6), 20 % above base"
    )


AVERAGED = {
    candidate for step in (2, 4, 6) for candidate in (Candidate(step), Candidate(step, "ema"))
}


def test_best_may_be_a_moving_average_and_the_reason_says_so() -> None:
    """Both kinds compete; the loss of the same step's weights stands beside the chosen one."""
    run = journal({0: 0.5, 2: 0.3, 4: 0.2, 6: 0.21}, {0: 0.5, 2: 0.4, 4: 0.19, 6: 0.2})
    choice = choose_checkpoint(run, AVERAGED, "best")
    assert choice.candidate == Candidate(4, "ema")
    assert choice.validation_loss == 0.19
    assert choice.reason == (
        "step 4 of 6, moving average: lowest validation loss (0.19), 62 % below base; "
        "its raw weights were 5.3 % higher; step 6 was 5.3 % higher"
    )
    without = choose_checkpoint(run, AVERAGED, "best", {Candidate(4, "ema")})
    assert without.candidate == Candidate(4)
    assert without.reason == (
        "step 4 of 6, raw weights: lowest validation loss (0.2), 60 % below base; its moving "
        "average was 5.0 % lower; step 6 was 5.0 % higher; "
        "step 4, moving average left out: collapsed"
    )


@pytest.mark.parametrize("select", ["last", 6])
def test_a_named_step_is_the_weights_themselves(select: str | int) -> None:
    """However good their average is: it is kept beside them, never in their place."""
    run = journal({0: 0.5, 2: 0.3, 4: 0.2, 6: 0.21}, {0: 0.5, 2: 0.4, 4: 0.19, 6: 0.1})
    choice = choose_checkpoint(run, AVERAGED, select)
    assert choice.candidate == Candidate(6)
    assert "of 6, raw weights: " in choice.reason
    assert "its moving average was 52.4 % lower" in choice.reason


def test_of_equal_losses_the_weights_come_first() -> None:
    """An average that brings nothing is not preferred."""
    run = journal({0: 0.5, 2: 0.3, 4: 0.3, 6: 0.3}, {2: 0.3, 4: 0.3, 6: 0.3})
    assert choose_checkpoint(run, AVERAGED, "best").candidate == Candidate(2)


PHASE = PhaseParams(rank=8, alpha=8.0, steps=70, learning_rate=0.001)


def of_steps(params: TrainParams, steps: int, *phases: PhaseParams, **more: object) -> TrainParams:
    """Return params of a run with a checkpoint every 100 steps."""
    change = {"steps": steps, "checkpoint_every": 100, "phases": list(phases), **more}
    return params.model_copy(update=change)


def test_checkpoints_come_at_their_interval_and_at_the_end(params: TrainParams) -> None:
    """Known before training, so that a step can be asked for; each phase ends with one."""
    assert checkpoint_steps(of_steps(params, 300)) == (100, 200, 300)
    assert checkpoint_steps(of_steps(params, 250)) == (100, 200, 250)
    assert checkpoint_steps(of_steps(params, 50)) == (50,)
    assert checkpoint_steps(of_steps(params, 50, PHASE, PHASE)) == (50, 100, 120, 190)


def test_a_step_without_a_checkpoint_is_refused_before_training(params: TrainParams) -> None:
    """With those that there will be near it; words are always fine."""
    for select in ("best", "last", 200):
        require_checkpoints(of_steps(params, 400, select=select), 4)
    with pytest.raises(ParamsError, match=r"after step 210\. Near it are 100, 200, 300; they come"):
        require_checkpoints(of_steps(params, 400, select=210), 4)


def test_all_that_is_wrong_with_checkpoints_is_told_at_once(params: TrainParams) -> None:
    """A step without one, and more of them than the sheet shows, phases' ends included."""
    with pytest.raises(ParamsError) as caught:
        require_checkpoints(of_steps(params, 200, PHASE, select=260), 2)
    message = str(caught.value)
    assert "after step 260. Near it are 100, 200, 270" in message
    assert "and after the last of every phase." in message
    assert "gives 3 checkpoints; the sheet has room for 2. Raise it, or join phases" in message
    require_checkpoints(of_steps(params, 200), 3)
    with pytest.raises(ParamsError, match="gives 2 checkpoints; the sheet has room for 1"):
        require_checkpoints(of_steps(params, 200, ema_decay=0.9), 3)
