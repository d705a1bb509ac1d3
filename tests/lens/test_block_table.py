"""The block table from measured pictures."""

import numpy as np
import pandas as pd
import pytest

from stages.contracts.tables import BLOCKS
from stages.lens.block_table import Resampling, block_table, effect_metrics

RESAMPLING = Resampling(resamples=200, confidence=0.9, seed=0)


def measured(recoveries: dict[str, list[float]], effect: float = 100.0) -> pd.DataFrame:
    """PICTURES of two prompts with two seeds each, and one prompt without the trigger."""
    rows = []
    for variant, values in recoveries.items():
        for place, value in enumerate(values):
            to_full = (1.0 - value) * effect
            rows.append((f"develop-{place // 2}", place % 2, variant, effect, to_full, value))
    rows.append(("without-trigger-0", 0, "full", effect / 4, 0.0, 1.0))
    columns = ["prompt", "seed", "variant", "mse_to_none", "mse_to_full", "recovery"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def blocks() -> pd.DataFrame:
    """Two blocks with shares and norms."""
    columns = {name: [1, 1] for name in ("modules", "rank", "parameters", "bytes")}
    reals = {name: [0.5, 0.5] for name in ("norm", "relative_norm", "prior", "low", "high")}
    shares = {"block": ["double.0", "single.1"], "share": [0.7, 0.3]}
    return pd.DataFrame({**shares, **columns, **reals})


def test_columns_are_means_over_prompts_and_seeds(blocks: pd.DataFrame) -> None:
    """A mean counts each picture once, and its interval encloses it."""
    pictures = measured(
        {
            "full": [1.0] * 4,
            "only:double.0": [0.5, 0.7, 0.6, 0.8],
            "only:single.1": [0.1, 0.1, 0.1, 0.1],
            "without:double.0": [0.3] * 4,
            "without:single.1": [0.9] * 4,
        }
    )
    table = block_table(blocks, pictures, RESAMPLING).set_index("block")
    assert list(table.reset_index().columns) == list(BLOCKS.schema.columns)
    assert table.loc["double.0", "only_recovery"] == pytest.approx(0.65)
    low, high = table.loc["double.0", ["only_recovery_low", "only_recovery_high"]]
    assert 0.5 <= low < 0.65 < high <= 0.8
    assert table.loc["single.1", "only_recovery_low"] == pytest.approx(0.1)
    assert table.loc["double.0", "without_mse_to_full"] == pytest.approx(70.0)
    metrics = effect_metrics(pictures, table.reset_index())
    assert metrics["bleed"] == pytest.approx(0.25)
    assert metrics["rank_tau"] == pytest.approx(1.0)


def test_what_was_not_drawn_stays_empty(blocks: pd.DataFrame) -> None:
    """A missing mode is no zero."""
    pictures = measured({"full": [1.0] * 4, "only:double.0": [0.5] * 4, "only:single.1": [0.5] * 4})
    table = block_table(blocks, pictures, RESAMPLING)
    assert table["without_recovery"].isna().all()
    assert np.isnan(effect_metrics(pictures, table)["noise_floor_mse"])


def test_an_adapter_without_effect_has_no_recovery(blocks: pd.DataFrame) -> None:
    """Nothing divided by nothing is not reported as a number."""
    pictures = measured({"full": [1.0] * 4, "only:double.0": [np.nan] * 4}, effect=0.0)
    table = block_table(blocks, pictures, RESAMPLING)
    metrics = effect_metrics(pictures, table)
    assert table["only_recovery"].isna().all()
    assert np.isnan(metrics["bleed"])
    assert "rank_tau" not in metrics
