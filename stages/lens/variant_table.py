"""What the pictures say of choices that are no single block: strengths, bands and mixes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stages.contracts.tables import STRENGTHS, VARIANTS
from stages.lens.block_table import DEVELOP, cube, of_kind
from stages.lens.rankings import Resampling
from stages.lens.statistics import bootstrap_interval

_STRENGTH_OF = {"none": 0.0, "full": 1.0}
_SINGLE_BLOCKS = ("only:", "without:", "random:")


def variant_table(measured: pd.DataFrame, resampling: Resampling) -> pd.DataFrame:
    """Return the VARIANTS table: means over development prompts and seeds, recovery's interval."""
    develop = of_kind(measured, DEVELOP)
    names = [name for name in develop["variant"].unique() if not name.startswith(_SINGLE_BLOCKS)]
    rows = []
    for name in sorted(names):
        pictures = develop[develop["variant"] == name]
        values = cube(pictures, "recovery", [name])
        low, high = (np.nan, np.nan)
        if values is not None:
            low, high = bootstrap_interval(
                values[:, :, 0], resampling.resamples, resampling.confidence, resampling.seed
            )
        means = pictures[["mse_to_none", "mse_to_full", "recovery", "direction", "ssim_to_full"]]
        # A mean over some pictures only would stand next to means over all of them.
        mean = means.mean(skipna=False)
        rows.append(
            {
                "variant": name,
                "pictures": len(pictures),
                **mean.to_dict(),
                "recovery_low": low,
                "recovery_high": high,
            }
        )
    return pd.DataFrame(rows)[list(VARIANTS.schema.columns)]


def strength_table(variants: pd.DataFrame) -> pd.DataFrame:
    """Return the STRENGTHS table of a VARIANTS table; `none` is strength 0 and `full` 1."""
    strengths = {
        name: _STRENGTH_OF[name] if name in _STRENGTH_OF else float(name.partition(":")[2])
        for name in variants["variant"]
        if name in _STRENGTH_OF or name.startswith("strength:")
    }
    rows = variants[variants["variant"].isin(strengths)].copy()
    rows["strength"] = rows["variant"].map(strengths)
    # strength:1 is `full` once more.
    rows = rows.sort_values("variant").drop_duplicates("strength")
    return rows[list(STRENGTHS.schema.columns)].sort_values("strength").reset_index(drop=True)
