"""What the measured pictures say of each block, and of the adapter as a whole.

The pictures come as the PICTURES table, the blocks as SPLIT_INDEX joined with SHARES.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from stages.contracts.tables import BLOCKS
from stages.lens.rankings import (
    Flags,
    Resampling,
    bootstrap_tau,
    friedman_p,
    rank_blocks,
    split_half_tau,
)
from stages.lens.statistics import Array, bootstrap_interval, bootstrap_means, interval, rank_tau

DEVELOP: Final = "develop"
WITHOUT_TRIGGER: Final = "without-trigger"

_MEANS: Final = {
    "only": {
        "only_mse_to_none": "mse_to_none",
        "only_direction": "direction",
        "only_ssim_to_none": "ssim_to_none",
    },
    "without": {
        "without_mse_to_full": "mse_to_full",
        "without_recovery": "recovery",
        "without_direction": "direction",
        "without_ssim_to_full": "ssim_to_full",
    },
    "random": {"random_mse_to_none": "mse_to_none", "random_recovery": "recovery"},
}
"""Kind of variant -> columns of BLOCKS that are plain means of columns of PICTURES."""

_RANK_COLUMNS: Final = {
    "only_rank": "rank",
    "only_rank_low": "low",
    "only_rank_high": "high",
    "only_in_top": "in_top",
}
"""Columns of BLOCKS -> fields of Ranks."""


def of_kind(measured: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the pictures whose prompts are of a kind (`DEVELOP`, `WITHOUT_TRIGGER`)."""
    return measured[measured["prompt"].str.rpartition("-")[0] == kind]


def block_table(
    blocks: pd.DataFrame, measured: pd.DataFrame, top: int, resampling: Resampling
) -> pd.DataFrame:
    """Return the BLOCKS table, from the pictures of development prompts.

    Columns of variants that were not drawn are empty, and so are recoveries where the whole
    adapter has no effect. `bleed_stopped` is from prompts without the trigger.

    Args:
        blocks: SPLIT_INDEX joined with SHARES.
        measured: PICTURES.
        top: the k of `only_in_top`.
        resampling: behind all intervals.
    """
    develop = of_kind(measured, DEVELOP)
    names = blocks["block"].tolist()
    table = blocks.rename(columns={"low": "share_low", "high": "share_high"})
    for kind, columns in _MEANS.items():
        for column, source in columns.items():
            table[column] = _mean(cube(develop, source, _variants(kind, names)), len(names))
    tied = tied_blocks(develop, names, resampling)
    table["only_in_noise"] = np.nan if tied is None else tied.astype(np.float64)
    recoveries = cube(develop, "recovery", _variants("only", names))
    table["only_recovery"] = _mean(recoveries, len(names))
    low, high = _interval(recoveries, len(names), resampling)
    table["only_recovery_low"], table["only_recovery_high"] = low, high
    ranks = None
    if recoveries is not None:
        untied = np.zeros(len(names), dtype=bool)
        ranks = rank_blocks(recoveries, untied if tied is None else tied, top, resampling)
    for column, field in _RANK_COLUMNS.items():
        table[column] = np.nan if ranks is None else getattr(ranks, field)
    stopped = bleed_stopped(of_kind(measured, WITHOUT_TRIGGER), names)
    table["bleed_stopped"] = _mean(stopped, len(names))
    low, high = _interval(stopped, len(names), resampling)
    table["bleed_stopped_low"], table["bleed_stopped_high"] = low, high
    return table[list(BLOCKS.schema.columns)]


def cube(pictures: pd.DataFrame, column: str, variants: list[str]) -> Array | None:
    """Return a column as [prompts, seeds, variants], or None where a number is missing."""
    wide = pictures[pictures["variant"].isin(variants)].pivot(
        index=["prompt", "seed"], columns="variant", values=column
    )
    if wide.empty or not set(variants) <= set(wide.columns):
        return None
    ordered = wide.sort_index()[variants].to_numpy(dtype=np.float64)
    shape = (pictures["prompt"].nunique(), pictures["seed"].nunique(), len(variants))
    if not np.isfinite(ordered).all() or len(ordered) != shape[0] * shape[1]:
        return None
    return ordered.reshape(shape)


def tied_blocks(develop: pd.DataFrame, names: list[str], resampling: Resampling) -> Flags | None:
    """Return [blocks] whether a block alone may change no more than a repeated run does.

    It may where the interval of its MSE to `none` reaches down to the upper end of the repeated
    run's. None where there is no repeated run or no picture of single blocks.
    """
    floor = cube(develop, "mse_to_full", ["repeat"])
    errors = cube(develop, "mse_to_none", _variants("only", names))
    if floor is None or errors is None:
        return None
    _, top = bootstrap_interval(
        floor[:, :, 0], resampling.resamples, resampling.confidence, resampling.seed
    )
    low, _ = _interval(errors, len(names), resampling)
    tied: Flags = low <= top
    return tied


def bleed_stopped(plain: pd.DataFrame, names: list[str]) -> Array | None:
    """Return [prompts, seeds, blocks]: the part of the bleeding that is gone without the block.

    1 - MSE(without, none) / MSE(full, none) on prompts without the trigger: 1 where leaving the
    block out brings the base model's picture back, negative where it leads farther away.
    """
    left = cube(plain, "mse_to_none", _variants("without", names))
    whole = cube(plain, "mse_to_none", ["full"])
    if left is None or whole is None or (whole == 0.0).any():
        return None
    stopped: Array = 1.0 - left / whole
    return stopped


def effect_metrics(measured: pd.DataFrame, table: pd.DataFrame) -> dict[str, float]:
    """Return what the adapter does as a whole; NaN where there are no pictures to tell.

    effect_mse: MSE of `full` against `none`; noise_floor_mse: of `full` drawn twice (rounding
    alone); bleed: the effect on prompts without the trigger over the effect on those with it;
    rank_tau: Kendall's tau-b of shares against isolate recoveries; learnt_over_noise: the median
    over blocks of the block's MSE to `none` over that of noise of its norm.
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
    if table["random_mse_to_none"].gt(0.0).any():
        noisy = table[table["random_mse_to_none"] > 0.0]
        ratios = noisy["only_mse_to_none"] / noisy["random_mse_to_none"]
        metrics["learnt_over_noise"] = float(ratios.median())
    return metrics


def trust_metrics(
    measured: pd.DataFrame, table: pd.DataFrame, resampling: Resampling
) -> dict[str, float]:
    """Return how far the ranking by isolate recovery can be trusted; NaN where nothing tells.

    split_half_tau and bootstrap_tau: Kendall's tau-b between halves and resamples; friedman_p: of
    the test whether the blocks differ at all; blocks_in_noise: those that change no more than a
    repeated run. Empty where single blocks were not drawn.
    """
    values = cube(
        of_kind(measured, DEVELOP), "recovery", _variants("only", table["block"].tolist())
    )
    if values is None:
        return {}
    return {
        "split_half_tau": split_half_tau(values),
        "bootstrap_tau": bootstrap_tau(values, resampling),
        "friedman_p": friedman_p(values),
        "blocks_in_noise": float(table["only_in_noise"].sum(min_count=1)),
    }


def is_anecdotal(measured: pd.DataFrame) -> bool:
    """Return whether there is one prompt and one seed: then nothing is known of others."""
    return len(of_kind(measured, DEVELOP)[["prompt", "seed"]].drop_duplicates()) == 1


def _variants(kind: str, names: list[str]) -> list[str]:
    return [f"{kind}:{name}" for name in names]


def _mean(values: Array | None, count: int) -> Array:
    return np.full(count, np.nan) if values is None else values.mean(axis=(0, 1))


def _interval(values: Array | None, count: int, resampling: Resampling) -> tuple[Array, Array]:
    if values is None:
        return np.full(count, np.nan), np.full(count, np.nan)
    return interval(
        bootstrap_means(values, resampling.resamples, resampling.seed), resampling.confidence
    )
