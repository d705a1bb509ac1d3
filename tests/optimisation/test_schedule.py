"""The learning rate is a function of the step, and equal to diffusers' schedules."""

from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler

from stages.contracts.errors import ParamsError
from stages.contracts.params import TrainParams
from stages.optimisation.schedule import learning_rate, settle_steps, total_steps

DIFFUSERS_NAMES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "cosine-restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
}


def change(params: TrainParams, **changes: object) -> TrainParams:
    """Return `params` with changes."""
    return params.model_copy(update=changes)


def diffusers_rates(params: TrainParams) -> list[float]:
    """Return the rate of each step of the run under diffusers' scheduler."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=params.learning_rate)
    scheduler = get_scheduler(
        DIFFUSERS_NAMES[params.scheduler],
        optimiser,
        num_warmup_steps=params.warmup_steps,
        num_training_steps=total_steps(params),
        num_cycles=params.scheduler_cycles,
        power=params.scheduler_power,
    )
    rates = []
    for _ in range(total_steps(params)):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("scheduler", list(DIFFUSERS_NAMES))
@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_equals_diffusers(params: TrainParams, scheduler: str, warmup_steps: int) -> None:
    """After warm-up rate by rate; in it one step ahead, since theirs begins with a rate of 0."""
    chosen = change(
        params,
        scheduler=scheduler,
        warmup_steps=warmup_steps,
        steps=40,
        scheduler_cycles=3,
        scheduler_power=2.0,
    )
    ours = [learning_rate(step, chosen) for step in range(1, 41)]
    theirs = diffusers_rates(chosen)
    assert ours[warmup_steps:] == pytest.approx(theirs[warmup_steps:], rel=1e-12)
    assert ours[:warmup_steps] == pytest.approx(theirs[1 : warmup_steps + 1], rel=1e-12)
    assert len(set(ours)) > 3 or scheduler == "constant"


def test_rate_rises_linearly_and_stays(params: TrainParams) -> None:
    """Warm-up of four steps: a quarter of the rate each, then all of it, to the bit."""
    four = change(params, warmup_steps=4, learning_rate=1.0)
    assert [learning_rate(step, four) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_no_step_is_wasted(params: TrainParams) -> None:
    """No rate of any schedule is 0, neither the first step's nor the last one's."""
    for scheduler in DIFFUSERS_NAMES:
        for warmup_steps in (0, 3, 40, 50):
            chosen = change(params, scheduler=scheduler, warmup_steps=warmup_steps, steps=40)
            assert min(learning_rate(step, chosen) for step in range(1, 41)) > 0


@pytest.mark.parametrize(("pictures", "steps"), [(3, 500), (24, 2400), (60, 4000)])
def test_auto_steps(params: TrainParams, pictures: int, steps: int) -> None:
    """A hundred per picture, within what is known to work."""
    settled = settle_steps(change(params, steps="auto"), pictures)
    assert total_steps(settled) == steps


def test_warmup_is_shorter_than_auto_steps(params: TrainParams) -> None:
    """How many steps there are is known from the pictures alone, so it is refused here."""
    with pytest.raises(ParamsError, match="500 are not fewer than the 500 steps of 3 pictures"):
        settle_steps(change(params, steps="auto", warmup_steps=500), 3)


def test_a_number_of_steps_stays(params: TrainParams) -> None:
    """Who asks for six steps gets six."""
    assert settle_steps(params, 24) is params
    assert total_steps(params) == 6


def test_unsettled_steps_are_refused(params: TrainParams) -> None:
    """Nobody takes `auto` for a number."""
    with pytest.raises(ValueError, match="settle_steps comes first"):
        total_steps(change(params, steps="auto"))
