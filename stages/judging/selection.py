"""Which checkpoint is shipped, and why.

`best` is the lowest validation loss among the checkpoints whose pictures did not collapse, the
moving averages of the weights among them where they are kept. Of equal ones it is the earliest,
which is the least overfitted, and the weights before their average. Where all collapsed, it is the
lowest of all, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params import TrainParams
from stages.judging.candidates import BASE_MODEL, WORDS, Candidate
from stages.optimisation.phases import phases_of
from stages.training.state import Journal

Losses = Mapping[Candidate, float]


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoint, its validation loss, the base model's, and why it is that."""

    candidate: Candidate
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


def require_checkpoints(params: TrainParams, rows: int) -> None:
    """Check before training that the step asked for will have a checkpoint, and all have room.

    Args:
        params: of the run, settled.
        rows: of the sheet at its end, that of the base model apart; a moving average has its own.

    Raises:
        ParamsError: one of them is not so; both together.
    """
    checkpoints, select = checkpoint_steps(params), params.select
    room = rows // (2 if params.ema_decay > 0 else 1)
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
    checkpoints: Collection[Candidate],
    select: str | int,
    collapsed: Collection[Candidate] = (),
) -> Choice:
    """Return the checkpoint that becomes the adapter.

    Args:
        journal: of a finished run; its step 0 is the base model.
        checkpoints: those that were kept.
        select: `best`, or `last` or a step: of these the weights themselves, not their average.
        collapsed: those whose pictures are near-uniform or all alike.

    Raises:
        ValueError: no checkpoint was measured, or the base model or the step asked for was not.
    """
    losses = {}
    for row in journal.history:
        for candidate in (Candidate(row.step, "raw"), Candidate(row.step, "ema")):
            loss, _ = candidate.losses(row)
            if loss is not None and candidate in (BASE_MODEL, *checkpoints):
                losses[candidate] = loss
    base = losses.pop(BASE_MODEL, None)
    if not losses or base is None or (isinstance(select, int) and Candidate(select) not in losses):
        measured = sorted({candidate.step for candidate in losses})
        raise ValueError(f"nothing to choose from: measured steps {measured}")
    last = max(candidate.step for candidate in losses)
    if select == "best":
        sound = [candidate for candidate in losses if candidate not in collapsed] or [*losses]
        chosen = min(sound, key=lambda candidate: losses[candidate])
        reason = _chosen_name(chosen, losses, last)
        reason += f"lowest validation loss {_against(losses[chosen], base)}"
        reason += _beside(chosen, losses, last) + _left_out(losses, collapsed)
    else:
        chosen = Candidate(last if select == "last" else int(select))
        asked = "the last one" if select == "last" else "the one"
        reason = _chosen_name(chosen, losses, last)
        reason += f"{asked} train.select asks for; validation loss "
        reason += _against(losses[chosen], base) + _beside(chosen, losses, last)
        reason += "; it collapsed" if chosen in collapsed else ""
    return Choice(chosen, losses[chosen], base, reason)


def _chosen_name(chosen: Candidate, losses: Losses, last: int) -> str:
    """Return `step 4 of 6: `, and which weights of that step where there are two kinds."""
    kinds = {candidate.weights for candidate in losses}
    which = f", {WORDS[chosen.weights]}" if len(kinds) > 1 else ""
    return f"step {chosen.step} of {last}{which}: "


def _against(loss: float, base: float) -> str:
    below = 100 * (1 - loss / base)
    side = "below" if below >= 0 else "above"
    return f"({loss:.4g}), {abs(below):.0f} % {side} base"


def _beside(chosen: Candidate, losses: Losses, last: int) -> str:
    """Return how the step's other weights did, and the last step of the kind, or the next best."""
    words = ""
    twin = Candidate(chosen.step, "raw" if chosen.weights == "ema" else "ema")
    if twin in losses:
        verb = "was" if twin.weights == "ema" else "were"
        words += f"; its {WORDS[twin.weights]} {verb} {_apart(losses[twin], losses[chosen])}"
    others = [each for each in losses if each.weights == chosen.weights and each != chosen]
    if others:
        best = min(others, key=lambda each: losses[each])
        other = Candidate(last, chosen.weights) if chosen.step != last else best
        words += f"; step {other.step} was {_apart(losses[other], losses[chosen])}"
    return words


def _apart(loss: float, chosen: float) -> str:
    apart = 100 * (loss / chosen - 1)
    return f"{abs(apart):.1f} % {'higher' if apart >= 0 else 'lower'}"


def _left_out(losses: Losses, collapsed: Collection[Candidate]) -> str:
    spoilt = [candidate for candidate in losses if candidate in collapsed]
    if not spoilt:
        return ""
    if len(spoilt) == len(losses):
        return "; all checkpoints collapsed"
    return f"; {', '.join(candidate.label for candidate in spoilt)} left out: collapsed"


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in steps)
