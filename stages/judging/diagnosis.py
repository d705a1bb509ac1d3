"""What a finished run's losses and pictures say, in words, with the numbers and what to change.

Each rule is a function from the evidence to a finding or nothing. Losses are those at fixed points
(validation.py), so that no rule mistakes the noise of batches for the run. What to change follows
the practice of FLUX LoRA training: a rate that is too low shows as a loss that stops early or
still falls at the end, one that is too high as a loss that goes up and down or a gradient that
grows; a gap between held-out and training pictures as learning by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from stages.judging.scoring import COPY_RATIO, Score
from stages.judging.spikes import find_spikes
from stages.judging.uses import Use
from stages.training.state import Row

NOTHING_WRONG: Final = "nothing wrong"

FEWEST_VALIDATIONS: Final = 4
"""Beside the base model's: fewer do not tell a trend from a rise."""

FLAT_FALL: Final = 0.002
"""A fall of less than 0.2 % of the base model's loss is none."""

SMALL_FALL: Final = 0.01
"""A fall of less than 1 % of the base model's loss: next to nothing was learnt."""

LATE_GAIN: Final = 0.05
"""Less than a twentieth of the whole fall in the second half of the run: it stopped early."""

STILL_FALLING: Final = 0.15
"""More than this of the whole fall in the last quarter; a straight line would bring a quarter."""

RISEN: Final = 1.02
"""Validation loss 2 % above its lowest: beyond what two checkpoints of a settled run differ by."""

GAP: Final = 0.15
"""Training pictures gained 15 % of the base model's loss more than held-out ones did."""

RISES: Final = 0.25
"""Rises that add up to a quarter of the whole range; a smooth fall has none."""

SMALLEST_RISE: Final = 0.002
"""A rise of less than 0.2 % of the base model's loss is none."""

GRADIENT_GROWTH: Final = 2.0
"""Median norm of the last quarter over that of the second one (the first: B is still near 0)."""

LEAST_EFFECT_MSE: Final = 25.0
"""Five grey levels of 255, root mean square: hardly seen."""

MUCH_BLEED: Final = 0.25
"""The line that the report draws, too."""


@dataclass(frozen=True)
class Finding:
    """One thing that the run shows: its name, what was seen, what to change, and the numbers."""

    name: str
    words: str
    advice: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Series:
    """Losses at fixed points: steps (0 is the base model), held-out and training pictures.

    `probe` is None where no training picture was measured.
    """

    steps: Sequence[int]
    validation: Sequence[float]
    probe: Sequence[float] | None

    @property
    def fitted(self) -> Sequence[float]:
        """What the optimiser works on: training pictures, else held-out ones."""
        return self.validation if self.probe is None else self.probe


@dataclass(frozen=True)
class Evidence:
    """All that the rules look at.

    `scores` are those of the checkpoints, the base model's first; `chosen` is one of their steps;
    `uses` what each step was made of.
    """

    history: Sequence[Row]
    uses: Mapping[int, Sequence[Use]]
    scores: Sequence[Score]
    chosen: int

    @property
    def score(self) -> Score:
        """The chosen checkpoint's."""
        return next(score for score in self.scores if score.step == self.chosen)


def diagnose(evidence: Evidence) -> list[Finding]:
    """Return what is found, in the order of the rules; "nothing wrong" where nothing is."""
    series = _series(evidence.history)
    findings = [found for rule in _RULES if (found := rule(evidence, series))]
    if findings:
        return findings
    best = 1 - min(series.validation) / series.validation[0]
    words = f"No rule fires: validation loss fell to {_percent(best)} below the base model's."
    return [Finding(NOTHING_WRONG, words, "Keep these settings.", {"improvement": best})]


def _series(history: Sequence[Row]) -> Series:
    measured = [row for row in history if row.validation_loss is not None]
    probe = [row.probe_loss for row in measured if row.probe_loss is not None]
    return Series(
        [row.step for row in measured],
        [row.validation_loss for row in measured if row.validation_loss is not None],
        probe if len(probe) == len(measured) else None,
    )


def _unwatched(_: Evidence, series: Series) -> Finding | None:
    measured = len(series.steps) - 1
    if measured >= FEWEST_VALIDATIONS:
        return None
    words = f"Losses at fixed points were measured {measured} times: no trend can be told."
    return Finding(
        "too few validations", words, "Lower train.validation_every.", {"validations": measured}
    )


def _diverged(_: Evidence, series: Series) -> Finding | None:
    ratio = series.fitted[-1] / series.fitted[0]
    if ratio <= RISEN:
        return None
    words = f"The loss ends {_percent(ratio - 1)} above the base model's: training undid it."
    return Finding("diverged", words, "Lower train.learning_rate to a third.", {"ratio": ratio})


def _plateaued(evidence: Evidence, series: Series) -> Finding | None:
    # A loss that went down and up again did not stop: a higher rate is the last thing it needs.
    if not _is_plateau(series) or _oscillates(evidence, series):
        return None
    numbers = {"fall": _fall(series.fitted), "second_half": _late_gain(series, 0.5)}
    words = f"The loss fell by {_percent(numbers['fall'])} of the base model's"
    if numbers["fall"] < FLAT_FALL:
        words += ": it never got going."
    else:
        step = series.steps[_settled_at(series)]
        words += (
            f", {_percent(numbers['second_half'])} of that in the second half of the run: it "
            f"settled at step {step}."
        )
    advice = (
        "Raise train.learning_rate two- to fivefold; if the pictures are right, take fewer steps."
    )
    return Finding("loss plateaued early", words, advice, numbers)


def _oscillates(_: Evidence, series: Series) -> Finding | None:
    if len(series.steps) <= FEWEST_VALIDATIONS:
        return None
    rises = _rises(series.fitted)
    share = sum(rises) / (max(series.fitted) - min(series.fitted)) if rises else 0.0
    if len(rises) < 2 or share < RISES:
        return None
    words = (
        f"The loss at fixed points went up {len(rises)} times and down again, in all by "
        f"{_percent(share)} of its whole range."
    )
    advice = "Lower train.learning_rate to a half or a third, or raise train.batch."
    return Finding("loss oscillates", words, advice, {"rises": len(rises), "share": share})


def _spikes(evidence: Evidence, _: Series) -> Finding | None:
    losses = {row.step: row.loss for row in evidence.history if row.loss is not None}
    found = find_spikes(losses, {step: evidence.uses[step] for step in losses})
    if found is None:
        return None
    numbers = {"spikes": len(found.steps), "factor": found.factor, "share_of_uses": found.share}
    words = (
        f"{_times(len(found.steps), 'step')} had up to {found.factor:.1f} times the loss that is "
        f"usual at their noise levels, first step {found.steps[0]}."
    )
    if found.picture is None:
        together = sorted({use.picture for use in evidence.uses[found.steps[0]]})
        words += f" No single picture explains them; step {found.steps[0]} had "
        words += f"{', '.join(together)}."
        return Finding("loss spikes", words, "Lower train.learning_rate.", numbers)
    words += f" The picture is {found.picture}: {_percent(found.share)} of its uses spiked."
    advice = f"Look at {found.picture} and its caption; correct them or leave the picture out."
    return Finding("loss spikes", words, advice, numbers)


def _gradient_grows(evidence: Evidence, _: Series) -> Finding | None:
    norms = [row.gradient_norm for row in evidence.history if row.gradient_norm is not None]
    quarter = len(norms) // 4
    if quarter < FEWEST_VALIDATIONS:
        return None
    early = float(np.median(norms[quarter : 2 * quarter]))
    late = float(np.median(norms[-quarter:]))
    if late < GRADIENT_GROWTH * early:
        return None
    words = f"The gradient's norm grew from {early:.3g} to {late:.3g} after the first quarter."
    advice = "Lower train.learning_rate to a half, or train.gradient_clip below the early norm."
    return Finding("gradient norm grows", words, advice, {"early": early, "late": late})


def _overfits(_: Evidence, series: Series) -> Finding | None:
    lowest = int(np.argmin(series.validation))
    rise = series.validation[-1] / series.validation[lowest]
    step, numbers = series.steps[lowest], {"rise": rise - 1}
    learning = series.probe is None or series.probe[-1] < series.probe[lowest]
    gap = 0.0
    if series.probe is not None:
        held_out = series.validation[-1] / series.validation[0]
        gap = held_out - series.probe[-1] / series.probe[0]
        numbers["gap"] = gap
    if not (learning and rise >= RISEN) and gap < GAP:
        return None
    words = f"Validation loss was lowest at step {step} and ended {_percent(rise - 1)} above that"
    if series.probe is not None:
        words += f"; training pictures gained {_percent(gap)} of the base's loss more than others"
    advice = "Take fewer steps or a lower rank, add pictures, or raise train.caption_dropout."
    return Finding("over-fitting", f"{words}.", advice, numbers)


def _underfits(evidence: Evidence, series: Series) -> Finding | None:
    fall, late = _fall(series.fitted), _late_gain(series, 0.25)
    falling = (
        len(series.steps) > FEWEST_VALIDATIONS
        and late >= STILL_FALLING
        and series.fitted[-1] == min(series.fitted)
    )
    if fall >= SMALL_FALL and (not falling or _overfits(evidence, series)):
        return None
    words = f"The loss fell by {_percent(fall)} of the base model's"
    if fall < SMALL_FALL:
        words += ": next to nothing was learnt."
    else:
        words += f", {_percent(late)} of that in the last quarter: it was still falling."
    advice = "Take more steps, raise train.learning_rate, or train.rank."
    return Finding("under-fitting", words, advice, {"fall": fall, "last_quarter": late})


def _no_effect(evidence: Evidence, _: Series) -> Finding | None:
    effect = evidence.score.effect_mse
    if effect is None or effect >= LEAST_EFFECT_MSE:
        return None
    words = (
        f"With the trigger, pictures differ from the base model's by {effect**0.5:.1f} grey levels "
        "of 255: hardly seen."
    )
    advice = (
        "See that every caption begins with the trigger; raise train.learning_rate, steps or rank."
    )
    return Finding("trigger without effect", words, advice, {"effect_mse": effect})


def _bleeds(evidence: Evidence, _: Series) -> Finding | None:
    score = evidence.score
    if score.bleed is None or score.bleed < MUCH_BLEED or score.plain_mse is None:
        return None
    if score.plain_mse < LEAST_EFFECT_MSE:
        return None
    words = (
        f"Pictures without the trigger moved {_percent(score.bleed)} as far from the base model's "
        "as those with it."
    )
    advice = (
        "Add regularisation pictures or output preservation; take fewer steps, or a lower rank."
    )
    numbers = {"bleed": score.bleed, "plain_mse": score.plain_mse}
    return Finding("bleeding", words, advice, numbers)


def _memorised(evidence: Evidence, _: Series) -> Finding | None:
    nearest, base = evidence.score.nearest_training, evidence.scores[0].nearest_training
    if nearest is None or base is None or nearest >= min(COPY_RATIO, base):
        return None
    words = (
        f"A sample picture is {nearest:.2f} times as far from a training picture as training "
        "pictures are from each other: it is a copy."
    )
    advice = "Take an earlier checkpoint, fewer steps or a lower rank; add pictures."
    return Finding("memorised", words, advice, {"nearest_training": nearest})


def _collapsed(evidence: Evidence, _: Series) -> Finding | None:
    collapsed = [score.step for score in evidence.scores if score.collapsed]
    if not collapsed:
        return None
    words = f"Pictures are uniform, or alike for all prompts, at step {_listed(collapsed)}."
    advice = "Take an earlier checkpoint; lower train.learning_rate."
    numbers = {"detail": evidence.score.detail, "diversity": evidence.score.diversity}
    return Finding(
        "collapse", words, advice, {name: x for name, x in numbers.items() if x is not None}
    )


_RULES: Final[Sequence[Callable[[Evidence, Series], Finding | None]]] = (
    _unwatched,
    _diverged,
    _plateaued,
    _oscillates,
    _spikes,
    _gradient_grows,
    _overfits,
    _underfits,
    _no_effect,
    _bleeds,
    _memorised,
    _collapsed,
)


def _is_plateau(series: Series) -> bool:
    risen = series.fitted[-1] > RISEN * min(series.fitted)
    if len(series.steps) <= FEWEST_VALIDATIONS or risen:
        return False
    return _fall(series.fitted) < FLAT_FALL or _late_gain(series, 0.5) < LATE_GAIN


def _settled_at(series: Series) -> int:
    """Return the place of the first loss within LATE_GAIN of the whole fall from the lowest."""
    base, lowest = series.fitted[0], min(series.fitted)
    line = lowest + LATE_GAIN * (base - lowest)
    return next(place for place, loss in enumerate(series.fitted) if loss <= line)


def _fall(losses: Sequence[float]) -> float:
    """Return how far the lowest loss is below the first, as a part of it."""
    return 1 - min(losses) / losses[0]


def _rises(losses: Sequence[float]) -> list[float]:
    """Return how far the loss rose each time, from a valley to the next peak."""
    rises: list[float] = []
    climbing = False
    for before, after in pairwise(losses):
        if after - before <= SMALLEST_RISE * losses[0]:
            climbing = False
            continue
        rises = [*rises[:-1], rises[-1] + after - before] if climbing else [*rises, after - before]
        climbing = True
    return rises


def _late_gain(series: Series, part: float) -> float:
    """Return which part of the whole fall the last `part` of the steps brought."""
    line = (1 - part) * series.steps[-1]
    losses = series.fitted
    early = [loss for step, loss in zip(series.steps, losses, strict=True) if step <= line]
    whole = losses[0] - min(losses)
    return (min(early) - min(losses)) / whole if whole > 0 else 0.0


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in steps)
