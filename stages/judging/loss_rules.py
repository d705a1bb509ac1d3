"""What a run's losses and gradients show.

Losses are those at fixed points (validation.py), so that no rule mistakes the noise of batches for
the run. What to change follows the practice of FLUX LoRA training: a rate that is too low shows as
a loss that stops early or still falls at the end, one that is too high as a loss that goes up and
down or a gradient that grows; a gap between held-out and training pictures as learning by heart.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from stages.judging.findings import (
    LESS_TRAINING,
    RANK,
    RATE,
    STEPS,
    Evidence,
    Remedy,
    Seen,
    percent,
)
from stages.judging.spikes import find_spikes
from stages.judging.trends import (
    FEWEST_VALIDATIONS,
    FLAT_FALL,
    RISEN,
    Series,
    fall,
    is_plateau,
    late_gain,
    oscillation,
    settled_at,
)

SMALL_FALL: Final = 0.01
"""A fall of less than 1 % of the base model's loss: next to nothing was learnt."""

STILL_FALLING: Final = 0.15
"""More than this of the whole fall in the last quarter; a straight line would bring a quarter."""

GAP: Final = 0.15
"""Training pictures gained 15 % of the base model's loss more than held-out ones did."""

GRADIENT_GROWTH: Final = 2.0
"""Median norm of the last quarter over that of the second one (the first: B is still near 0)."""


def unwatched(_: Evidence, series: Series) -> Seen | None:
    """Return "too few validations": no trend can be told."""
    series = series.last_phase
    if series.tells_trend:
        return None
    measured = len(series.steps) - 1
    times = "once" if measured == 1 else f"{measured} times"
    where = " in the last phase" if series.begins else ""
    words = f"Losses at fixed points were measured {times}{where}: no trend can be told."
    remedies = (Remedy("lower train.validation_every"),)
    return Seen("too few validations", words, remedies, {"validations": measured})


def diverged(_: Evidence, series: Series) -> Seen | None:
    """Return "diverged": the loss ends above the base model's."""
    ratio = series.fitted[-1] / series.fitted[0]
    if ratio <= RISEN:
        return None
    words = f"The loss ends {percent(ratio - 1)} above the base model's: training undid it."
    remedies = (Remedy("lower train.learning_rate to a third", lowers=RATE),)
    return Seen("diverged", words, remedies, {"ratio": ratio})


def plateaued(_: Evidence, series: Series) -> Seen | None:
    """Return "loss plateaued early": the second half of the run brought next to nothing."""
    series = series.last_phase
    if not is_plateau(series):
        return None
    raise_rate = Remedy("raise train.learning_rate two- to fivefold", raises=RATE)
    fewer = Remedy("if the pictures are right, take fewer steps", lowers=STEPS)
    numbers = {"fall": fall(series.fitted), "second_half": late_gain(series, 0.5)}
    if numbers["fall"] < FLAT_FALL:
        words = f"The loss fell by {percent(numbers['fall'])}: it never got going."
        return Seen("loss plateaued early", words, (raise_rate,), numbers)
    words = (
        f"The loss fell by {percent(numbers['fall'])} of {_start(series)}, of that "
        f"{percent(numbers['second_half'])} in the second half of the run: it settled at step "
        f"{settled_at(series)}."
    )
    return Seen("loss plateaued early", words, (raise_rate, fewer), numbers)


def oscillates(_: Evidence, series: Series) -> Seen | None:
    """Return "loss oscillates": it went up and down again, by much of its range."""
    found = oscillation(series.last_phase)
    if found is None:
        return None
    times, share = found
    words = (
        f"The loss at fixed points went up {times} times and down again, in all by "
        f"{percent(share)} of its whole range."
    )
    remedies = (
        Remedy("lower train.learning_rate to a half or a third", lowers=RATE),
        Remedy("raise train.batch"),
    )
    return Seen("loss oscillates", words, remedies, {"rises": times, "share": share})


def spikes(evidence: Evidence, _: Series) -> Seen | None:
    """Return "loss spikes", with the picture that explains them, if one does."""
    losses = {row.step: row.loss for row in evidence.history if row.loss is not None}
    found = find_spikes(losses, {step: evidence.uses[step] for step in losses})
    if found is None:
        return None
    numbers = {"spikes": len(found.steps), "factor": found.factor, "share_of_uses": found.share}
    count = len(found.steps)
    words = (
        f"{count} {'step' if count == 1 else 'steps'} had up to {found.factor:.1f} times the loss "
        f"that is usual at their noise levels, first step {found.steps[0]}."
    )
    if found.picture is None:
        together = sorted({use.picture for use in evidence.uses[found.steps[0]]})
        words += f" No single picture explains them; step {found.steps[0]} had "
        words += f"{', '.join(together)}."
        remedies = (Remedy("lower train.learning_rate", lowers=RATE),)
        return Seen("loss spikes", words, remedies, numbers)
    words += f" The picture is {found.picture}: {percent(found.share)} of its uses spiked."
    look = f"look at {found.picture} and its caption; correct them or leave the picture out"
    return Seen("loss spikes", words, (Remedy(look),), numbers)


def gradient_grows(evidence: Evidence, _: Series) -> Seen | None:
    """Return "gradient norm grows": it doubled after the first quarter."""
    last = [row for row in evidence.history if row.step > evidence.last_phase_begins]
    norms = [row.gradient_norm for row in last if row.gradient_norm is not None]
    quarter = len(norms) // 4
    if quarter < FEWEST_VALIDATIONS:
        return None
    early = float(np.median(norms[quarter : 2 * quarter]))
    late = float(np.median(norms[-quarter:]))
    if late < GRADIENT_GROWTH * early:
        return None
    words = f"The gradient's norm grew from {early:.3g} to {late:.3g} after the first quarter."
    remedies = (
        Remedy("lower train.learning_rate to a half", lowers=RATE),
        Remedy("lower train.gradient_clip below the early norm"),
    )
    return Seen("gradient norm grows", words, remedies, {"early": early, "late": late})


def overfits(evidence: Evidence, series: Series) -> Seen | None:
    """Return "over-fitting": held-out loss rose while the fit went on, or the two fell apart."""
    if diverged(evidence, series) is not None:  # nothing was fitted
        return None
    lowest = int(np.argmin(series.validation))
    rise = series.validation[-1] / series.validation[lowest] - 1
    learning = series.probe is None or series.probe[-1] < series.probe[lowest]
    rose = series.tells_trend and learning and rise >= RISEN - 1
    said, numbers = [], {"rise": rise}
    if rose:
        said.append(
            f"Validation loss was lowest at step {series.steps[lowest]} and ended {percent(rise)} "
            "above that"
        )
    if series.probe is not None:
        held_out = series.validation[-1] / series.validation[0]
        numbers["gap"] = held_out - series.probe[-1] / series.probe[0]
        if numbers["gap"] >= GAP:
            gap = percent(numbers["gap"])
            said.append(f"Training pictures gained {gap} of the base model's loss more than others")
    if not said:
        return None
    remedies = (
        Remedy("take fewer steps", lowers=LESS_TRAINING),
        Remedy("lower train.rank", lowers=RANK),
        Remedy("add pictures"),
        Remedy("raise train.caption_dropout"),
    )
    return Seen("over-fitting", f"{'. '.join(said)}.", remedies, numbers)


def underfits(evidence: Evidence, series: Series) -> Seen | None:
    """Return "under-fitting": next to nothing was learnt, or the loss was still falling."""
    last = series.last_phase
    if is_plateau(last):  # the other finding of a loss that is too high, with its own advice
        return None
    if any(rule(evidence, series) is not None for rule in (diverged, overfits)):
        return None
    whole, late = fall(series.fitted), late_gain(last, 0.25)
    falling = last.tells_trend and late >= STILL_FALLING
    falling = falling and series.fitted[-1] == min(series.fitted)
    if whole >= SMALL_FALL and not falling:
        return None
    words = f"The loss fell by {percent(whole)}"
    if whole < SMALL_FALL:
        words += ": hardly anything was learnt."
    else:
        of_what = "the last phase's part" if series.begins else "that"
        words += f" of the base model's, of {of_what} {percent(late)} in the last quarter: it was "
        words += "still falling."
    remedies = (
        Remedy("take more steps", raises=STEPS),
        Remedy("raise train.learning_rate", raises=RATE),
        Remedy("raise train.rank", raises=RANK),
    )
    return Seen("under-fitting", words, remedies, {"fall": whole, "last_quarter": late})


def _start(series: Series) -> str:
    """Return what a phase's losses are compared with."""
    return "that at the start of the last phase" if series.begins else "the base model's"
