"""Intervals and agreement of rankings, for values measured on prompts x seeds.

Prompts and seeds are crossed: every seed is the same starting noise under every prompt, so
neither the pictures of one prompt nor those of one seed are independent. The bootstrap therefore
draws whole prompts and whole seeds (the pigeonhole bootstrap of Owen, 2007, "The pigeonhole
bootstrap", Annals of Applied Statistics 1(2), arXiv 0712.1111). It errs on the wide side where both
are many; from two or three prompts its intervals are too narrow: docs/method.md has how often they
miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

Array: TypeAlias = npt.NDArray[np.float64]


def bootstrap_interval(
    values: npt.ArrayLike, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Return the percentile interval (low, high) of the mean of `values` [prompts, seeds].

    The same seed gives the same draws for values of the same shape, so intervals of several
    blocks are comparable. With one prompt and one seed the interval is that one value: it says
    nothing about other prompts.

    Raises:
        ValueError: `values` is not a full matrix of finite numbers.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"expected values [prompts, seeds], got shape {matrix.shape}")
    low, high = interval(bootstrap_means(matrix, resamples, seed), confidence)
    return float(low), float(high)


def bootstrap_means(values: npt.ArrayLike, resamples: int, seed: int) -> Array:
    """Return the means [resamples, …] of `values` [prompts, seeds, …] under resampling.

    Raises:
        ValueError: `values` has no prompts or seeds, or numbers that are not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 2 or 0 in array.shape[:2]:
        raise ValueError(f"expected values [prompts, seeds, …], got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite")
    prompts, seeds = array.shape[:2]
    generator = np.random.default_rng(seed)
    drawn_prompts = _draw(generator, resamples, prompts)
    drawn_seeds = _draw(generator, resamples, seeds)
    means: Array = np.einsum("rp,rs,ps...->r...", drawn_prompts, drawn_seeds, array)
    return means


def interval(means: Array, confidence: float) -> tuple[Array, Array]:
    """Return the low and high quantiles, each of shape […], of `means` [resamples, …]."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return low, high


def rank_tau(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """Return Kendall's tau-b of two measurements of the same blocks, in -1..1.

    0 where either has no two different values: there is then no order to agree on (scipy gives
    NaN, which no metrics file can hold).

    Raises:
        ValueError: the two differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"rankings of {len(a)} and {len(b)} blocks cannot be compared")
    tau = float(kendalltau(a, b, variant="b").statistic) if len(a) > 1 else 0.0
    return 0.0 if np.isnan(tau) else tau


def _draw(generator: np.random.Generator, resamples: int, count: int) -> Array:
    """Return weights [resamples, count]: how often each of `count` is drawn, over `count`."""
    drawn = generator.integers(count, size=(resamples, count))
    hits: Array = (drawn[:, :, None] == np.arange(count)).sum(axis=1).astype(np.float64)
    return hits / count
