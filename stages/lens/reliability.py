"""How well a ranking of blocks would be found again with other pictures.

The pictures (prompts x seeds) are cut into two halves, each half ranks the blocks, and Kendall's
tau-b says how far the two agree: split-half reliability (Spearman, 1910, British Journal of
Psychology 3), with every cut counted where there are few, and drawn ones otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from math import comb

import numpy as np
import numpy.typing as npt

from stages.lens.statistics import rank_tau


def split_half_tau(values: npt.ArrayLike, most_splits: int, seed: int) -> float:
    """Return the mean tau-b, in -1..1, of the blocks' means over two halves of the pictures.

    With an odd number of pictures one half has one more. With one picture there are no halves,
    and nothing can be said: 0.

    Args:
        values: [pictures, blocks].
        most_splits: all ways to cut are counted up to this number; beyond, so many are drawn.
        seed: of the draws.

    Raises:
        ValueError: `values` is not a matrix of finite numbers.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(f"expected finite values [pictures, blocks], got {matrix.shape}")
    if len(matrix) < 2:
        return 0.0
    taus = [
        rank_tau(matrix[half].mean(axis=0), matrix[~half].mean(axis=0))
        for half in _halves(len(matrix), most_splits, seed)
    ]
    return float(np.mean(taus))


def _halves(count: int, most: int, seed: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield masks [count] of one half each; a cut and its mirror image count once."""
    size = count // 2
    if comb(count, size) <= 2 * most:
        # Of an even number the first half of all combinations holds picture 0: once per cut.
        cuts = comb(count, size) // (2 if count % 2 == 0 else 1)
        picks = [list(pick) for pick in islice(combinations(range(count), size), cuts)]
    else:
        generator = np.random.default_rng(seed)
        picks = [generator.permutation(count)[:size].tolist() for _ in range(most)]
    for pick in picks:
        half = np.zeros(count, dtype=np.bool_)
        half[pick] = True
        yield half
