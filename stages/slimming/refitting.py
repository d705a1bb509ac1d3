"""The strengths of the blocks kept, for every size of an order.

Strengths that were fitted to a prompt flatter its pictures. So each development prompt is judged
with strengths that its own probes had no say in (cross-fitting; Chernozhukov
et al., 2018, The Econometrics Journal 21(1), section 1), and the file gets those fitted to all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.lens.interaction import Array, refit_strengths
from stages.lens.selection import prefix_sets


def size_strengths(order: Sequence[int], products: Array, ridge: float | None) -> Array:
    """Return the strengths [sizes, blocks] of the first 0, 1, 2, … blocks of `order`.

    Args:
        order: all blocks, as column numbers.
        products: <u_b, u_c> [blocks, blocks].
        ridge: of lens/interaction.py; None leaves every strength at 1.
    """
    strengths = prefix_sets(order).astype(np.float64)
    if ridge is not None:
        for row in strengths[1:-1]:
            row[:] = refit_strengths(products, row > 0.0, ridge)
    return strengths


def crossed_strengths(order: Sequence[int], by_prompt: Array, ridge: float | None) -> Array:
    """Return the strengths [sizes, prompts, blocks] with which each prompt is judged.

    They are fitted to the other prompts; to the same one where it is the only one.

    Args:
        order: all blocks, as column numbers.
        by_prompt: <u_b, u_c> [prompts, blocks, blocks].
        ridge: as in `size_strengths`.
    """
    prompts = len(by_prompt)
    others = [
        np.delete(by_prompt, prompt, axis=0).mean(axis=0) if prompts > 1 else by_prompt[0]
        for prompt in range(prompts)
    ]
    return np.stack([size_strengths(order, products, ridge) for products in others], axis=1)
