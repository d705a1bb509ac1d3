"""Which checkpoint is shipped, and why.

`best` is the lowest validation loss among the checkpoints whose pictures did not collapse; of
equal ones the earliest, which is the least overfitted. Where all collapsed, it is the lowest of
all, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params import TrainParams
from stages.optimisation.phases import phases_of
from stages.training.state import Journal


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoint's step, its validation loss, the base model's, and why it is that."""

    step: int
    validation_loss: float
    validation_loss_base: float
    reason: str

    @property
    def improvement(self) -> float:
        """How far the loss is below the base model's: 0.25 is 25 %."""
        return 1 - self.validation_loss / self.validation_loss_base


def checkpoint_steps(params: TrainParams) -> tuple[int, ...]:
    """Return the steps after which a run of settled params keeps a checkpoint."""
    ends = [phase.last for phase in phases_of(params)]
    every = params.checkpoint_every
    return tuple(sorted({*range(every, ends[-1], every), *ends}))


def require_checkpoints(params: TrainParams, room: int) -> None:
    """Check before training that the step asked for will have a checkpoint, and all have room.

    Args:
        params: of the run, settled.
        room: how many checkpoints the sheet at its end can show.

    Raises:
        ParamsError: one of them is not so; both together.
    """
    checkpoints, select = checkpoint_steps(params), params.select
    problems = []
    if isinstance(select, int) and select not in checkpoints:
        near = sorted(checkpoints, key=lambda step: abs(step - select))[:3]
        problems.append(
            Problem(
                "train.select",
                f"no checkpoint is kept after step {select}",
                f"Near it are {_listed(sorted(near))}; they come every train.checkpoint_every "
                f"steps and after the last{' of every phase' if params.phases else ''}.",
            )
        )
    if len(checkpoints) > room:
        what = f"gives {len(checkpoints)} checkpoints; the sheet has room for {room}"
        remedy = f"Raise it{', or join phases: each ends with one' if params.phases else ''}."
        problems.append(Problem("train.checkpoint_every", what, remedy))
    if problems:
        raise ParamsError("These checkpoints cannot be kept", problems)


def choose_checkpoint(
    journal: Journal,
    checkpoints: Collection[int],
    select: str | int,
    collapsed: Collection[int] = (),
) -> Choice:
    """Return the checkpoint that becomes the adapter.

    Args:
        journal: of a finished run; its step 0 is the base model.
        checkpoints: the steps whose adapters were kept.
        select: `best`, `last` or a step.
        collapsed: steps whose pictures are near-uniform or all alike.

    Raises:
        ValueError: no checkpoint was measured, or the base model or the step asked for was not.
    """
    losses = {
        row.step: row.validation_loss for row in journal.history if row.validation_loss is not None
    }
    measured = sorted(losses.keys() & set(checkpoints))
    if not measured or 0 not in losses or (isinstance(select, int) and select not in measured):
        raise ValueError(f"nothing to choose from: measured steps {sorted(losses)}")
    sound = [step for step in measured if step not in collapsed] or measured
    best = min(sound, key=lambda step: losses[step])
    step = {"best": best, "last": measured[-1]}.get(str(select), select)
    assert isinstance(step, int)
    reason = _reason(step, {step: losses[step] for step in measured}, losses[0], select, collapsed)
    return Choice(step, losses[step], losses[0], reason)


def _reason(
    step: int,
    losses: dict[int, float],
    base: float,
    select: str | int,
    collapsed: Collection[int],
) -> str:
    """Return the choice in words: what was asked for, the loss, and the next best checkpoint."""
    loss, last = losses[step], max(losses)
    below = 100 * (1 - loss / base)
    side = "below" if below >= 0 else "above"
    numbers = f"({loss:.4g}), {abs(below):.0f} % {side} base"
    if select != "best":
        asked = "the last one" if select == "last" else "the one"
        words = f"{asked} train.select asks for; validation loss {numbers}"
    else:
        words = f"lowest validation loss {numbers}"
    others = [other for other in losses if other != step]
    if others:
        other = last if last != step else min(others, key=lambda other: losses[other])
        apart = 100 * (losses[other] / loss - 1)
        side = "higher" if apart >= 0 else "lower"
        words += f"; step {other} was {abs(apart):.1f} % {side}"
    if select != "best" and step in collapsed:
        words += "; it collapsed"
    spoilt = sorted(set(collapsed) & losses.keys())
    if select == "best" and spoilt:
        all_of_them = len(spoilt) == len(losses)
        words += "; all checkpoints" if all_of_them else f"; step {', '.join(map(str, spoilt))}"
        words += " collapsed" if all_of_them else " left out: collapsed"
    return f"step {step} of {last}: {words}"


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in steps)
