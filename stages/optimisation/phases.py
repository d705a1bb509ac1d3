"""The phases of a run: what holds in each of them, and from which step to which.

Steps are numbered through all phases. The first one is what train.rank, alpha, steps and
learning_rate describe; train.phases are those that follow. All else holds in every phase, the
block_settings included: their rank, alpha and rate stay as they are written.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.contracts.params import TrainParams


@dataclass(frozen=True)
class Phase:
    """One phase, numbered from 1: its steps from `first` to `last`, both included.

    `params` are those of a run that consists of this phase alone.
    """

    number: int
    first: int
    last: int
    params: TrainParams


def phases_of(params: TrainParams) -> tuple[Phase, ...]:
    """Return all phases of a run of settled params, in order.

    Raises:
        ValueError: `steps` is still `auto`.
    """
    if isinstance(params.steps, str):
        raise ValueError("settle_steps comes first: the number of steps depends on the pictures")
    alone = params.model_copy(update={"phases": []})
    phases = [Phase(1, 1, params.steps, alone)]
    for number, values in enumerate(params.phases, start=2):
        before = phases[-1].last
        own = alone.model_copy(update=values.model_dump())
        phases.append(Phase(number, before + 1, before + values.steps, own))
    return tuple(phases)


def phase_of(step: int, params: TrainParams) -> Phase:
    """Return the phase that a step belongs to; step 0, the base model, to the first one.

    Raises:
        ValueError: the run has no such step.
    """
    for phase in phases_of(params):
        if step <= phase.last:
            return phase
    raise ValueError(f"the run has no step {step}: its last is {phases_of(params)[-1].last}")
