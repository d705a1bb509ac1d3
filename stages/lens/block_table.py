"""What the measured pictures say of each block, and of the adapter as a whole.

The pictures come as the PICTURES table, the blocks as SPLIT_INDEX joined with SHARES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from stages.contracts.tables import BLOCKS
from stages.lens.statistics import bootstrap_interval, rank_tau

DEVELOP: Final = "develop"
WITHOUT_TRIGGER: Final = "without-trigger"


@dataclass(frozen=True)
class Resampling:
    """How the intervals are made: bootstrap resamples, their coverage in 0..1, and the seed."""

    resamples: int
    confidence: float
    seed: int


def of_kind(measured: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the pictures whose prompts are of a kind (`DEVELOP`, `WITHOUT_TRIGGER`)."""
    return measured[measured["prompt"].str.rpartition("-")[0] == kind]


def block_table(
    blocks: pd.DataFrame, measured: pd.DataFrame, resampling: Resampling
) -> pd.DataFrame:
    """Return the BLOCKS table, from the pictures of development prompts.

    Columns of variants that were not drawn are empty, and so are recoveries where the whole
    adapter has no effect.
    """
    develop = of_kind(measured, DEVELOP)
    means = develop.groupby("variant")[["mse_to_none", "mse_to_full"]].mean()
    shape = (develop["prompt"].nunique(), develop["seed"].nunique())
    recoveries = develop.pivot(index="variant", columns=["prompt", "seed"], values="recovery")
    recoveries = recoveries.sort_index(axis=1)

    def recovery(variant: str) -> tuple[float, float, float]:
        if variant not in recoveries.index or recoveries.loc[variant].isna().any():
            return np.nan, np.nan, np.nan
        values = recoveries.loc[variant].to_numpy().reshape(shape)
        low, high = bootstrap_interval(
            values, resampling.resamples, resampling.confidence, resampling.seed
        )
        return float(values.mean()), low, high

    table = blocks.rename(columns={"low": "share_low", "high": "share_high"})
    only = [f"only:{block}" for block in table["block"]]
    without = [f"without:{block}" for block in table["block"]]
    table["only_mse_to_none"] = means["mse_to_none"].reindex(only).to_numpy()
    names = ["only_recovery", "only_recovery_low", "only_recovery_high"]
    table[names] = [recovery(variant) for variant in only]
    table["without_mse_to_full"] = means["mse_to_full"].reindex(without).to_numpy()
    table["without_recovery"] = [recovery(variant)[0] for variant in without]
    return table[list(BLOCKS.schema.columns)]


def effect_metrics(measured: pd.DataFrame, table: pd.DataFrame) -> dict[str, float]:
    """Return what the adapter does as a whole; NaN where there are no pictures to tell.

    effect_mse: MSE of `full` against `none`; noise_floor_mse: of `full` drawn twice; bleed: the
    effect on prompts without the trigger over the effect on those with it; rank_tau: Kendall's
    tau-b of shares against isolate recoveries.
    """

    def error(kind: str, variant: str, column: str) -> float:
        pictures = of_kind(measured, kind)
        return float(pictures.loc[pictures["variant"] == variant, column].mean())

    effect = error(DEVELOP, "full", "mse_to_none")
    bled = error(WITHOUT_TRIGGER, "full", "mse_to_none")
    metrics = {
        "effect_mse": effect,
        "noise_floor_mse": error(DEVELOP, "repeat", "mse_to_full"),
        "bleed": bled / effect if effect > 0.0 else np.nan,
    }
    if table["only_recovery"].notna().all():
        metrics["rank_tau"] = rank_tau(table["share"].tolist(), table["only_recovery"].tolist())
    return metrics
