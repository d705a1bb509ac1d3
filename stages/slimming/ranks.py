"""The second lever of a slim file: a smaller rank, for the blocks chosen and for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from stages.adapters.module import Adapter
from stages.adapters.reranking import at_rank
from stages.lens.rankings import Resampling
from stages.sampling.session import AdapterVersion
from stages.slimming.trial import Renderer, Trial, Verdict


@dataclass(frozen=True)
class Reranked:
    """A set of blocks at a smaller rank.

    `weight_error` is |Delta W - its| / |Delta W| of the set; `verdict` is that of the pictures.
    """

    rank: int
    adapter: Adapter
    weight_error: float
    verdict: Verdict


def rerank(
    renderer: Renderer,
    sets: Sequence[tuple[Adapter, AdapterVersion]],
    ranks: Sequence[int],
    trial: Trial,
    resampling: Resampling,
) -> Iterator[Reranked]:
    """Yield each of `sets` at each of `ranks`, judged by pictures of the trial's shots.

    Args:
        renderer: has the adapter that the sets are made of.
        sets: adapters of some blocks, at their strengths, and as versions of that adapter.
        ranks: below the adapters' own.
        trial: the shots, with their pictures without and with the whole LoRA.
        resampling: of the verdict's lower bound.
    """
    for adapter, version in sets:
        for rank in ranks:
            small, error = at_rank(adapter, rank)
            blocks = len(small.blocks)
            changed = replace(renderer, blocks=blocks, version=replace(version, rank=rank))
            (recoveries,) = changed.measure(trial, [np.ones(blocks)])
            yield Reranked(rank, small, error, trial.judge(recoveries, resampling))


def rank_table(reranked: Sequence[Reranked]) -> pd.DataFrame:
    """Return the SLIM_RANKS table."""
    table = pd.DataFrame(
        {
            "blocks": [len(one.adapter.blocks) for one in reranked],
            "rank": [one.rank for one in reranked],
            "bytes": [one.adapter.tensor_bytes for one in reranked],
            "weight_error": [one.weight_error for one in reranked],
            "recovery": [one.verdict.recovery for one in reranked],
            "recovery_low": [one.verdict.low for one in reranked],
        }
    )
    # An empty list has no type.
    return table.astype(float).astype(dict.fromkeys(["blocks", "rank", "bytes"], int))
