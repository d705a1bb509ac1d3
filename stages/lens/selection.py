"""From scores to an order of blocks, and from an order to the smallest set that will do.

Blocks are column numbers here, in the order of the adapter's blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Sets: TypeAlias = npt.NDArray[np.bool_]
ScoreSets: TypeAlias = Callable[[Sets], npt.NDArray[np.float64]]
"""From sets [sets, blocks] to the score of each."""


@dataclass(frozen=True)
class Order:
    """All blocks in the order in which they are taken.

    `scores` has one entry more than `blocks`: that of the first 0, 1, 2, … blocks as a set.
    """

    blocks: tuple[int, ...]
    scores: tuple[float, ...]


def largest_first(values: Sequence[float]) -> tuple[int, ...]:
    """Return the blocks by falling value; equal ones in the model's order."""
    return tuple(sorted(range(len(values)), key=lambda block: -values[block]))


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


def score_prefixes(order: Sequence[int], score: ScoreSets) -> Order:
    """Return `order` with the score of each of its prefixes; the empty one scores 0."""
    return Order(tuple(order), (0.0, *score(prefix_sets(order)[1:]).tolist()))


def greedy_steps(
    start: Sequence[int], score: ScoreSets, candidates: int
) -> Iterator[tuple[int, float]]:
    """Yield (block, score of the set with it) until every block of `start` is taken.

    Each step tries the first `candidates` blocks of `start` that are not taken yet and takes the
    one with which the set scores highest (the earlier one if equal). So sets are scored, and a
    block that only repeats what the set has already is put off.
    """
    waiting, taken = list(start), np.zeros(len(start), dtype=np.bool_)
    while waiting:
        tried = waiting[:candidates]
        sets = np.repeat(taken[None], len(tried), axis=0)
        sets[np.arange(len(tried)), tried] = True
        scores = score(sets)
        best = int(np.argmax(scores))
        taken = sets[best]
        yield waiting.pop(best), float(scores[best])


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
