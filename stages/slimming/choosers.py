"""The ways to put the blocks of a LoRA in the order in which a slim file takes them.

interaction     by what is lost without sets of blocks (lens/interaction.py): the default
greedy          adding the block with which P of the set grows most
shares          by share of the effect
shrinking       by share, measured anew each time the least block is dropped
isolate         by the recovery of pictures with the block alone
isolate-mse     by the MSE of those pictures against none: what people do by hand
ablation        by the MSE of pictures without the block against full
norm            by |Delta W| / |W|

`per_byte` divides what a block does by its bytes: a double block of FLUX.1 has more than twice
those of a single one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.contracts.blocks import BlockId
from stages.contracts.errors import Problem, TableError
from stages.lens.attribution import Effect, block_shares, score_sets
from stages.lens.interaction import Array, removal_order
from stages.lens.selection import (
    for_their_prices,
    greedy_steps,
    largest_first,
    shrinking_steps,
)
from stages.runtime.progress import track

COLUMNS: Final = {
    "shares": "share",
    "greedy": "share",
    "isolate": "only_recovery",
    "isolate-mse": "only_mse_to_none",
    "ablation": "without_mse_to_full",
    "norm": "relative_norm",
}
"""The column of the block table that a chooser starts from; the others need none."""
_MODES: Final = {
    "only_recovery": "only",
    "only_mse_to_none": "only",
    "without_mse_to_full": "without",
}


@dataclass(frozen=True)
class Choosing:
    """How blocks are put in order.

    `ridge` holds the strengths that the interaction chooser expects to be refitted, None where
    they are not; `candidates` are tried at each step of greedy; `nodes` are the quadrature's of
    shrinking; `batch` is how many probes run at once.
    """

    chooser: str
    per_byte: bool
    ridge: float | None
    candidates: int
    nodes: int
    batch: int


@dataclass(frozen=True)
class Measured:
    """What the choosers rank by: the effect on the probes, and [blocks, blocks] of its blocks.

    `scores` are of each block, from `read_scores`; None for a chooser that needs none.
    """

    effect: Effect
    products: Array
    scores: Sequence[float] | None


def read_scores(
    table: pd.DataFrame, path: Path, blocks: Sequence[BlockId], chooser: str
) -> list[float] | None:
    """Return the chooser's starting score of each of `blocks`; None where it needs no table.

    Raises:
        TableError: the table is of other blocks, or has no values in the chooser's column.
    """
    names = [str(block) for block in blocks]
    if set(table["block"]) != set(names):
        odd = sorted(set(table["block"]) ^ set(names))
        problem = Problem(str(path), f"blocks differ from the adapter's: {odd}", "Run `dvc repro`.")
        raise TableError("The block table is another adapter's", [problem])
    if chooser not in COLUMNS:
        return None
    column = COLUMNS[chooser]
    scores = table.set_index("block").loc[names, column]
    if scores.isna().any():
        mode = _MODES.get(column, "only")
        remedy = f"Add {mode} to params render.modes, or set slim.chooser to interaction."
        problem = Problem(f"{path} {column}", "has no values", remedy)
        raise TableError(f"The chooser {chooser} cannot rank the blocks", [problem])
    values: list[float] = scores.tolist()
    return values


def order_blocks(choosing: Choosing, measured: Measured, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the blocks, as column numbers, in the chooser's order.

    Args:
        choosing: the way.
        measured: what it ranks by.
        sizes: bytes of each block.

    Raises:
        ValueError: the chooser ranks by scores, and there are none.
    """
    prices = np.asarray(sizes if choosing.per_byte else np.ones(len(sizes)), dtype=np.float64)
    effect = measured.effect
    if choosing.chooser == "interaction":
        return removal_order(measured.products, prices, choosing.ridge)
    if choosing.chooser == "shrinking":
        dropping = shrinking_steps(lambda kept: _shares_of(effect, kept, choosing), prices)
        return tuple(reversed([*track(dropping, len(prices), "slim: choose")]))
    if measured.scores is None:
        raise ValueError(f"the chooser {choosing.chooser} needs a score per block")
    start = largest_first(for_their_prices(measured.scores, prices).tolist())
    if choosing.chooser != "greedy":
        return start
    score = partial(score_sets, effect, batch=choosing.batch)
    steps = greedy_steps(start, score, choosing.candidates, prices)
    return tuple(track(steps, len(start), "slim: choose"))


def _shares_of(
    effect: Effect, kept: npt.NDArray[np.bool_], choosing: Choosing
) -> npt.NDArray[np.float64]:
    """Return the shares [blocks] of P(1_kept) among the blocks kept; the others have none."""
    shares = block_shares(effect.of_blocks(kept), choosing.nodes, choosing.batch)
    means: npt.NDArray[np.float64] = shares.mean(axis=0)
    return means
