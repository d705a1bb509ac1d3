"""How far a ranking of blocks can be trusted, for values measured on prompts x seeds.

All functions take values [prompts, seeds, blocks] of which larger is better. Resampling draws whole
prompts and whole seeds (see statistics.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import friedmanchisquare, rankdata

from stages.lens.statistics import Array, bootstrap_means, interval, rank_tau

Flags: TypeAlias = npt.NDArray[np.bool_]

_MOST_SPLITS: Final = 200
_LEAST_BLOCKS: Final = 3  # of Friedman's test


@dataclass(frozen=True)
class Resampling:
    """How the intervals are made: bootstrap resamples, their coverage in 0..1, and the seed."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Ranks:
    """Per block: rank from 1 (tied blocks share the mean), its interval, P(among the first k)."""

    rank: Array
    low: Array
    high: Array
    in_top: Array


def rank_blocks(values: Array, tied: Flags, top: int, resampling: Resampling) -> Ranks:
    """Return the ranks of blocks by their mean, with what resampling makes of them.

    Args:
        values: [prompts, seeds, blocks].
        tied: [blocks]; those share one rank behind all others, in every resample.
        top: the k of P(among the first k).
        resampling: of prompts and seeds.
    """
    means = bootstrap_means(values, resampling.resamples, resampling.seed)
    drawn = np.stack([_ranks(row, tied) for row in means])
    low, high = interval(drawn, resampling.confidence)
    return Ranks(_ranks(values.mean(axis=(0, 1)), tied), low, high, (drawn <= top).mean(axis=0))


def split_half_tau(values: Array) -> float:
    """Return Kendall's tau-b between rankings by two halves of the prompts, mean over all splits.

    Halves of the seeds where there is one prompt; NaN where there is one of each. An odd one makes
    one half larger. At most 200 splits, evenly spaced in their order, are looked at.
    """
    axis = 0 if values.shape[0] > 1 else 1
    count = values.shape[axis]
    if count < 2:
        return float("nan")
    taus = []
    for half in _halves(count):
        rest = [place for place in range(count) if place not in half]
        first, second = (np.take(values, part, axis).mean(axis=(0, 1)) for part in (half, rest))
        taus.append(rank_tau(first, second))
    return float(np.mean(taus))


def bootstrap_tau(values: Array, resampling: Resampling) -> float:
    """Return the mean of Kendall's tau-b between the ranking and its resamples.

    NaN with one prompt and one seed, where every resample is the ranking itself.
    """
    if values.shape[0] * values.shape[1] == 1:
        return float("nan")
    means = bootstrap_means(values, resampling.resamples, resampling.seed)
    whole = values.mean(axis=(0, 1))
    return float(np.mean([rank_tau(whole, row) for row in means]))


def friedman_p(values: Array) -> float:
    """Return the p-value of Friedman's test: are the blocks different at all?

    M. Friedman, "The use of ranks to avoid the assumption of normality", JASA 32(200), 1937: blocks
    are treatments, each prompt with each seed is a judge. The judges are crossed and not wholly
    independent, so the value is on the small side. NaN with fewer than 3 blocks or 2 judges.
    """
    blocks = values.shape[2]
    judged = values.reshape(-1, blocks)
    if blocks < _LEAST_BLOCKS or len(judged) < 2:
        return float("nan")
    if (judged == judged[:, :1]).all():  # all tied: no difference (scipy divides by zero)
        return 1.0
    return float(friedmanchisquare(*judged.T).pvalue)


def _halves(count: int) -> Iterator[tuple[int, ...]]:
    """Yield at most 200 halves of `count` >= 2 things, evenly spaced among all there are.

    All are never held: there are 6e16 of 60. Those of an even count are the first half of them
    in lexicographic order, since {a, b} against {c, d} is {c, d} against {a, b}.
    """
    size = count // 2
    splits = comb(count, size) // (1 if count % 2 else 2)
    for place in range(0, splits, -(-splits // _MOST_SPLITS)):
        yield _combination(place, count, size)


def _combination(place: int, count: int, size: int) -> tuple[int, ...]:
    """Return the combination of `size` of `count` that is at `place` in lexicographic order.

    The combinatorial number system (D. Knuth, The Art of Computer Programming 4A, 7.2.1.3).
    """
    chosen: list[int] = []
    for element in range(count):
        if len(chosen) == size:
            break
        beginning_so = comb(count - element - 1, size - len(chosen) - 1)
        if place < beginning_so:
            chosen.append(element)
        else:
            place -= beginning_so
    return tuple(chosen)


def _ranks(means: Array, tied: Flags) -> Array:
    scores = np.where(tied, -np.inf, means)
    ranks: Array = rankdata(-scores, method="average").astype(np.float64)
    return ranks
