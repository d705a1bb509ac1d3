"""How many steps a run takes and the learning rate of each: functions of the params alone.

So nothing of a schedule has to be saved or restored. The courses are diffusers'
(src/diffusers/optimization.py), with its step counted from 0. Their warm-up begins with a step at
rate 0, which does nothing; ours begins at a rate of learning_rate / warmup_steps, so in warm-up it
is one step ahead of theirs.
"""

from __future__ import annotations

import math
from typing import Final

from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params import TrainParams
from stages.optimisation.phases import phase_of, phases_of

STEPS_PER_PICTURE: Final = 100
"""A rule of thumb for one subject; more pictures need more steps, repeats of a picture do not."""

FEWEST_STEPS: Final = 500
MOST_STEPS: Final = 4000
"""ai-toolkit, config/examples/train_lora_flux_24gb.yaml: "500 - 4000 is a good range"."""

_POLYNOMIAL_END: Final = 1e-7  # diffusers' lr_end


def settle_steps(params: TrainParams, pictures: int) -> TrainParams:
    """Return `params` with a number in place of `steps: auto`.

    Args:
        params: of the run.
        pictures: how many different pictures are trained on; repeats and held-out ones apart.

    Raises:
        ParamsError: warm-up would take all of the steps.
    """
    if params.steps != "auto":
        return params
    steps = min(max(STEPS_PER_PICTURE * pictures, FEWEST_STEPS), MOST_STEPS)
    if params.warmup_steps >= steps:
        what = f"{params.warmup_steps} are not fewer than the {steps} steps of {pictures} pictures"
        problem = Problem("train.warmup_steps", what, "Lower it, or set train.steps.")
        raise ParamsError("The learning rate would never be reached", [problem])
    return params.model_copy(update={"steps": steps})


def total_steps(params: TrainParams) -> int:
    """Return how many steps a run of settled params takes, all phases together.

    Raises:
        ValueError: `steps` is still `auto`.
    """
    return phases_of(params)[-1].last


def pictures_per_step(params: TrainParams) -> int:
    """Return how many pictures, all processes together, one step trains on."""
    return params.batch * params.accumulation


def learning_rate(step: int, params: TrainParams) -> float:
    """Return the rate of a step (the first is 1): linear from 0 in warm-up, then its course.

    Each phase has a warm-up and a course of its own.
    """
    phase = phase_of(step, params)
    return _rate_in_phase(step - phase.first + 1, phase.last - phase.first + 1, phase.params)


def _rate_in_phase(step: int, steps: int, params: TrainParams) -> float:
    if step < params.warmup_steps:
        return params.learning_rate * step / params.warmup_steps
    done = max(0, step - 1 - params.warmup_steps)
    return _course(params, done / max(1, steps - params.warmup_steps))


def _course(params: TrainParams, progress: float) -> float:
    """Return the rate after `progress` (0 to 1, 1 excluded) of the steps that follow warm-up."""
    peak = params.learning_rate
    match params.scheduler:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * _half_cosine(progress)
        case "cosine-restarts":
            return peak * _half_cosine(params.scheduler_cycles * progress % 1.0)
        case "polynomial":
            end = min(peak, _POLYNOMIAL_END)
            return end + (peak - end) * math.pow(1 - progress, params.scheduler_power)


def _half_cosine(progress: float) -> float:
    """Return 1 at 0, falling to 0 at 1 (SGDR, arXiv 1608.03983, equation 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))
