"""From scores to an order of blocks, and from an order to the smallest set that will do.

Blocks are column numbers here, in the order of the adapter's blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Sets: TypeAlias = npt.NDArray[np.bool_]
ScoreSets: TypeAlias = Callable[[Sets], npt.NDArray[np.float64]]
"""From sets [sets, blocks] to the score of each."""
MeasureShares: TypeAlias = Callable[[npt.NDArray[np.bool_]], npt.NDArray[np.float64]]
"""From the blocks that are left [blocks] to the share of each [blocks]."""
Prices: TypeAlias = npt.NDArray[np.float64]
"""What each block costs [blocks], above 0: its bytes, or 1."""


def largest_first(values: Sequence[float]) -> tuple[int, ...]:
    """Return the blocks by falling value; equal ones in the model's order."""
    return tuple(sorted(range(len(values)), key=lambda block: -values[block]))


def for_their_prices(gains: npt.ArrayLike, prices: Prices) -> npt.NDArray[np.float64]:
    """Return gains over prices [blocks], and gains below 0 times prices.

    What gains is the better the less it costs, what harms the worse the more it costs: over its
    price, harm would look smallest in the dearest block.
    """
    values = np.asarray(gains, dtype=np.float64)
    return np.where(values < 0.0, values * prices, values / prices)


def blocks_for(values: Sequence[float], amount: float) -> int:
    """Return how many of the largest values it takes to add up to `amount`; all if they do not."""
    total = 0.0
    for count, block in enumerate(largest_first(values), start=1):
        total += values[block]
        if total >= amount:
            return count
    return len(values)


def prefix_sets(order: Sequence[int]) -> Sets:
    """Return the sets [len(order) + 1, blocks] of the first 0, 1, 2, … blocks of `order`."""
    sets = np.zeros((len(order) + 1, len(order)), dtype=np.bool_)
    for size, block in enumerate(order, start=1):
        sets[size:, block] = True
    return sets


def greedy_steps(
    start: Sequence[int], score: ScoreSets, candidates: int, prices: Prices
) -> Iterator[int]:
    """Yield blocks until every block of `start` is taken.

    Each step tries the first `candidates` blocks of `start` that are not taken yet and takes the
    one with which the set's score gains most for its price (the earlier one if equal). So sets
    are scored, and a block that only repeats what the set has already is put off. The empty set
    scores 0.
    """
    waiting, taken, reached = list(start), np.zeros(len(start), dtype=np.bool_), 0.0
    while waiting:
        tried = waiting[:candidates]
        sets = np.repeat(taken[None], len(tried), axis=0)
        sets[np.arange(len(tried)), tried] = True
        scores = score(sets)
        best = int(np.argmax(for_their_prices(scores - reached, prices[tried])))
        taken, reached = sets[best], float(scores[best])
        yield waiting.pop(best)


def shrinking_steps(measure: MeasureShares, prices: Prices) -> Iterator[int]:
    """Yield the blocks from the first to be dropped to the last.

    Each step measures the shares of the blocks that are left and drops the one with the smallest
    share for its price (the later one of the model if equal).
    """
    kept = np.ones(len(prices), dtype=np.bool_)
    while kept.any():
        values = np.where(kept, for_their_prices(measure(kept), prices), np.inf)
        dropped = len(prices) - 1 - int(np.argmin(values[::-1]))
        kept[dropped] = False
        yield dropped


def smallest_passing(
    largest: int, at_once: int, passing: Callable[[Sequence[int]], Sequence[bool]]
) -> int:
    """Return the smallest size in 1..largest that passes, if larger sizes pass where smaller do.

    `largest` itself is known to pass. Each round asks for at most `at_once` sizes, spread evenly
    between the largest known to fail and the smallest known to pass.
    """
    failed, passed = 0, largest
    while passed - failed > 1:
        inner = np.linspace(failed, passed, min(at_once, passed - failed - 1) + 2)[1:-1]
        sizes = sorted({min(max(round(size), failed + 1), passed - 1) for size in inner})
        for size, passes in zip(sizes, passing(sizes), strict=True):
            if passes:
                passed = size
                break
            failed = size
    return passed
