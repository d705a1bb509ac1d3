"""Phases are functions of the params: which steps are whose, and what holds in them."""

from __future__ import annotations

import pytest

from stages.contracts.params import PhaseParams, TrainParams
from stages.optimisation.phases import phase_of, phases_of
from stages.optimisation.schedule import learning_rate, settle_steps, total_steps

LATER = [
    PhaseParams(rank=4, alpha=2.0, steps=5, learning_rate=0.01),
    PhaseParams(rank=16, alpha=16.0, steps=1, learning_rate=0.5),
]


@pytest.fixture
def phased(params: TrainParams) -> TrainParams:
    """Six steps of rank 2, then five of rank 4, then one of rank 16."""
    return params.model_copy(update={"phases": LATER})


def test_a_run_without_phases_is_one(params: TrainParams) -> None:
    """All values are train's own, the steps too."""
    (only,) = phases_of(params)
    assert (only.number, only.first, only.last) == (1, 1, 6)
    assert only.params == params


def test_steps_are_numbered_through_all_phases(phased: TrainParams) -> None:
    """Each phase begins after the one before; their sum is the run's number of steps."""
    assert [(one.first, one.last) for one in phases_of(phased)] == [(1, 6), (7, 11), (12, 12)]
    assert total_steps(phased) == 12
    numbers = [phase_of(step, phased).number for step in range(13)]
    assert numbers == [1] * 7 + [2] * 5 + [3]
    with pytest.raises(ValueError, match="the run has no step 13: its last is 12"):
        phase_of(13, phased)


def test_a_phase_has_its_values_and_shares_the_others(phased: TrainParams) -> None:
    """What a run of this phase alone would have; nothing of the phase before."""
    _, second, _ = phases_of(phased)
    own = {"rank": 4, "alpha": 2.0, "steps": 5, "learning_rate": 0.01}
    assert second.params == phased.model_copy(update={**own, "phases": []})


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine-restarts"])
def test_warm_up_and_schedule_begin_anew(phased: TrainParams, scheduler: str) -> None:
    """The rates are those of the phases run one by one."""
    chosen = phased.model_copy(update={"scheduler": scheduler})
    expected = [
        learning_rate(step, phase.params)
        for phase in phases_of(chosen)
        for step in range(1, total_steps(phase.params) + 1)
    ]
    assert [learning_rate(step, chosen) for step in range(1, 13)] == expected
    assert expected[6] == 0.01 / 2, "the first of two warm-up steps of the second phase"


def test_auto_is_the_first_phase(phased: TrainParams) -> None:
    """The pictures decide how long the first phase is; the others say it themselves."""
    settled = settle_steps(phased.model_copy(update={"steps": "auto"}), 24)
    assert [phase.last for phase in phases_of(settled)] == [2400, 2405, 2406]
    with pytest.raises(ValueError, match="settle_steps comes first"):
        phases_of(phased.model_copy(update={"steps": "auto"}))
