"""Where losses at fixed points go: how far they fell, when they settled, how often they rose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from stages.training.state import Row

FEWEST_VALIDATIONS: Final = 4
"""Beside the base model's: fewer do not tell a trend from a rise."""

FLAT_FALL: Final = 0.002
"""A fall of less than 0.2 % of the base model's loss is none."""

LATE_GAIN: Final = 0.05
"""Less than a twentieth of the whole fall in the second half of the run: it stopped early."""

RISEN: Final = 1.02
"""Validation loss 2 % above its lowest: beyond what two checkpoints of a settled run differ by."""

SMALLEST_RISE: Final = 0.002
"""A rise of less than 0.2 % of the base model's loss is none."""

_RISES: Final = 0.25
"""Rises that add up to a quarter of the whole range; a smooth fall has none."""


@dataclass(frozen=True)
class Series:
    """Losses at fixed points: steps (0 is the base model), held-out and training pictures.

    `probe` is None where no training picture was measured; `begins` the step that the last phase
    starts from, which has another optimiser, rate and rank: a trend does not go across it.
    """

    steps: Sequence[int]
    validation: Sequence[float]
    probe: Sequence[float] | None
    begins: int = 0

    @property
    def fitted(self) -> Sequence[float]:
        """What the optimiser works on: training pictures, else held-out ones."""
        return self.validation if self.probe is None else self.probe

    @property
    def last_phase(self) -> Series:
        """Those of the last phase, from where it starts."""
        kept = [place for place, step in enumerate(self.steps) if step >= self.begins]
        return Series(
            [self.steps[place] for place in kept],
            [self.validation[place] for place in kept],
            None if self.probe is None else [self.probe[place] for place in kept],
            self.begins,
        )

    @property
    def tells_trend(self) -> bool:
        """Whether there are enough measurements to tell a trend."""
        return len(self.steps) > FEWEST_VALIDATIONS


def measured_series(history: Sequence[Row], begins: int = 0) -> Series:
    """Return the losses at fixed points of a history; `begins`: see Series."""
    measured = [row for row in history if row.validation_loss is not None]
    probe = [row.probe_loss for row in measured if row.probe_loss is not None]
    return Series(
        [row.step for row in measured],
        [row.validation_loss for row in measured if row.validation_loss is not None],
        probe if len(probe) == len(measured) else None,
        begins,
    )


def is_plateau(series: Series) -> bool:
    """Return whether the loss stopped falling early; one that rose again, or swings, did not."""
    if not series.tells_trend or series.fitted[-1] > RISEN * min(series.fitted):
        return False
    if oscillation(series) is not None:
        return False
    return fall(series.fitted) < FLAT_FALL or late_gain(series, 0.5) < LATE_GAIN


def oscillation(series: Series) -> tuple[int, float] | None:
    """Return how often the loss rose and by which part of its range in all; None: it is steady."""
    if not series.tells_trend:
        return None
    found = rises(series.fitted)
    share = sum(found) / (max(series.fitted) - min(series.fitted)) if found else 0.0
    return (len(found), share) if len(found) >= 2 and share >= _RISES else None


def settled_at(series: Series) -> int:
    """Return the step of the first loss within LATE_GAIN of the whole fall from the lowest."""
    base, lowest = series.fitted[0], min(series.fitted)
    line = lowest + LATE_GAIN * (base - lowest)
    place = next(place for place, loss in enumerate(series.fitted) if loss <= line)
    return series.steps[place]


def fall(losses: Sequence[float]) -> float:
    """Return how far the lowest loss is below the first, as a part of it."""
    return 1 - min(losses) / losses[0]


def rises(losses: Sequence[float]) -> list[float]:
    """Return how far the loss rose each time, from a valley to the next peak."""
    found: list[float] = []
    climbing = False
    for before, after in pairwise(losses):
        if after - before <= SMALLEST_RISE * losses[0]:
            climbing = False
            continue
        found = [*found[:-1], found[-1] + after - before] if climbing else [*found, after - before]
        climbing = True
    return found


def late_gain(series: Series, part: float) -> float:
    """Return which part of the whole fall the last `part` of the steps brought."""
    line = series.steps[0] + (1 - part) * (series.steps[-1] - series.steps[0])
    losses = series.fitted
    early = [loss for step, loss in zip(series.steps, losses, strict=True) if step <= line]
    whole = losses[0] - min(losses)
    return (min(early) - min(losses)) / whole if whole > 0 else 0.0
