"""Steps whose loss stands out, and the picture that they have in common.

A step's loss depends on its noise levels before all else: at high noise it is several times that
at low noise. So the levels' part is taken out first, by a polynomial in sigma fitted to the run's
own losses over their weights, and what is left is compared with its neighbourhood.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from stages.judging.uses import Use

Series = npt.NDArray[np.float64]

SPIKE_FACTOR: Final = 1.5
"""A spike is at least this many times its neighbourhood: half as much again is seen in a chart."""

SPIKE_DEVIATIONS: Final = 6.0
"""… and this many robust standard deviations above it: of normal noise one in 10^9 is."""

FEWEST_STEPS: Final = 20
"""Fewer losses than this say nothing about what is usual."""

LEAST_SHARE: Final = 1 / 3
"""A picture is at fault if this part of its uses spiked: a bad one does so nearly every time."""

_DEGREE: Final = 3
_KEPT_QUANTILE: Final = 0.8  # of the residuals, in the second fit: spikes must not bend the curve
_REACH: Final = 12  # steps of the neighbourhood on either side
_FEWEST_SPIKES: Final = 2  # one spike may be any picture of its batch
_NORMAL_MAD: Final = 1.4826  # median absolute deviation to standard deviation


@dataclass(frozen=True)
class Spikes:
    """The steps, the largest factor over the usual loss, and the picture that explains them.

    `picture` is in at least half of the steps, and more often than any other for its number of
    uses; None where no picture is. `share` is the part of its uses that spiked.
    """

    steps: tuple[int, ...]
    factor: float
    picture: str | None
    share: float


def find_spikes(losses: Mapping[int, float], uses: Mapping[int, Sequence[Use]]) -> Spikes | None:
    """Return the spikes of a run, or None if there are none or too few steps to tell.

    Args:
        losses: by step.
        uses: what each of these steps was made of.
    """
    totals = {step: sum(use.weight for use in uses[step]) / len(uses[step]) for step in losses}
    steps = sorted(step for step, weight in totals.items() if weight > 0)
    if len(steps) < FEWEST_STEPS:
        return None
    values = np.array([losses[step] / totals[step] for step in steps])
    ratios = values / _usual(values, [uses[step] for step in steps])
    ratios = ratios / _neighbourhood(ratios)
    spread = _NORMAL_MAD * float(np.median(np.abs(ratios - 1)))
    threshold = max(SPIKE_FACTOR, 1 + SPIKE_DEVIATIONS * spread)
    spiked = [step for step, ratio in zip(steps, ratios, strict=True) if ratio >= threshold]
    if not spiked:
        return None
    picture, share = _culprit(spiked, uses)
    return Spikes(tuple(spiked), float(ratios.max()), picture, share)


def _usual(values: Series, uses: Sequence[Sequence[Use]]) -> Series:
    """Return the loss that each step's noise levels lead one to expect."""
    levels = np.array(
        [
            np.average(
                [_powers(use.sigma) for use in step], axis=0, weights=[use.weight for use in step]
            )
            for step in uses
        ],
        dtype=np.float64,
    )
    fitted = np.full_like(values, np.median(values))
    kept = np.ones(len(values), dtype=bool)
    for _ in range(2):
        weights = np.linalg.lstsq(levels[kept], values[kept], rcond=None)[0]
        fitted = np.maximum(levels @ weights, np.median(values) / 10)
        kept = values / fitted <= np.quantile(values / fitted, _KEPT_QUANTILE)
    return fitted


def _powers(sigma: float) -> Series:
    return sigma ** np.arange(_DEGREE + 1, dtype=np.float64)


def _neighbourhood(ratios: Series) -> Series:
    """Return the median around each step: losses fall during a run."""
    return np.array(
        [np.median(ratios[max(0, at - _REACH) : at + _REACH + 1]) for at in range(len(ratios))]
    )


def _culprit(spiked: Sequence[int], uses: Mapping[int, Sequence[Use]]) -> tuple[str | None, float]:
    everywhere = Counter(name for step in uses.values() for name in {use.picture for use in step})
    there = Counter(name for step in spiked for name in {use.picture for use in uses[step]})
    shares = {name: count / everywhere[name] for name, count in there.items()}
    name = max(sorted(there), key=lambda name: (shares[name], there[name]))
    alone = [other for other in there if shares[other] == shares[name]] == [name]
    often = there[name] >= _FEWEST_SPIKES and shares[name] >= LEAST_SHARE
    explains = alone and often and 2 * there[name] >= len(spiked)
    return (name, shares[name]) if explains else (None, 0.0)
