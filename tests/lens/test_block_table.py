"""The block table from measured pictures."""

import numpy as np
import pandas as pd
import pytest

from stages.contracts.tables import BLOCKS
from stages.lens.block_table import block_table, effect_metrics, is_anecdotal, trust_metrics
from stages.lens.rankings import Resampling

TOP = 1
RESAMPLING = Resampling(resamples=200, confidence=0.9, seed=0)


def measured(recoveries: dict[str, list[float]], effect: float = 100.0) -> pd.DataFrame:
    """PICTURES of two prompts with two seeds each, and one prompt without the trigger."""
    rows = []
    for variant, values in recoveries.items():
        for place, value in enumerate(values):
            to_full = (1.0 - value) * effect
            rows.append((f"develop-{place // 2}", place % 2, variant, effect, to_full, value))
    rows.append(("without-trigger-0", 0, "full", effect / 4, 0.0, 1.0))
    return pictures_of(rows)


def pictures_of(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    """PICTURES with the direction of the recovery and structure that is all the same."""
    columns = ["prompt", "seed", "variant", "mse_to_none", "mse_to_full", "recovery"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["direction"] = frame["recovery"]
    frame["ssim_to_none"] = frame["ssim_to_full"] = 0.5
    return frame


@pytest.fixture
def blocks() -> pd.DataFrame:
    """Two blocks with shares and norms."""
    columns = {name: [1, 1] for name in ("modules", "rank", "parameters", "bytes")}
    reals = {
        name: [0.5, 0.5]
        for name in ("norm", "relative_norm", "prior", "plain_share", "low", "high")
    }
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
    table = block_table(blocks, pictures, TOP, RESAMPLING).set_index("block")
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
    table = block_table(blocks, pictures, TOP, RESAMPLING)
    assert table["without_recovery"].isna().all()
    assert np.isnan(effect_metrics(pictures, table)["noise_floor_mse"])


def test_an_adapter_without_effect_has_no_recovery(blocks: pd.DataFrame) -> None:
    """Nothing divided by nothing is not reported as a number."""
    pictures = measured({"full": [1.0] * 4, "only:double.0": [np.nan] * 4}, effect=0.0)
    table = block_table(blocks, pictures, TOP, RESAMPLING)
    metrics = effect_metrics(pictures, table)
    assert table["only_recovery"].isna().all()
    assert np.isnan(metrics["bleed"])
    assert "rank_tau" not in metrics


def test_ranks_say_how_sure_they_are(blocks: pd.DataFrame) -> None:
    """The better block is first in most resamples; with clear values the interval is one rank."""
    clear = measured({"full": [1.0] * 4, "only:double.0": [0.5] * 4, "only:single.1": [0.7] * 4})
    table = block_table(blocks, clear, TOP, RESAMPLING).set_index("block")
    assert table["only_rank"].to_dict() == {"double.0": 2.0, "single.1": 1.0}
    assert table["only_rank_low"].equals(table["only_rank_high"])
    assert table["only_in_top"].to_dict() == {"double.0": 0.0, "single.1": 1.0}
    mixed = {"only:double.0": [0.5, 0.5, 0.1, 0.1], "only:single.1": [0.3, 0.3, 0.2, 0.2]}
    table = block_table(blocks, measured(mixed), TOP, RESAMPLING).set_index("block")
    assert 0.5 < table.loc["double.0", "only_in_top"] < 1.0
    assert table.loc["double.0", "only_rank_high"] == 2.0


def test_blocks_in_the_noise_are_tied(blocks: pd.DataFrame) -> None:
    """A block alone that moves a picture no more than a repeated run has no rank of its own."""
    third = blocks.iloc[:1].assign(block="single.2")
    rows = []
    for place in range(4):
        key = (f"develop-{place // 2}", place % 2)
        rows += [
            (*key, "full", 100.0, 0.0, 1.0),
            (*key, "repeat", 100.0, 2.0, 0.98),
            (*key, "only:double.0", 50.0, 60.0, 0.4),
            (*key, "only:single.1", 1.0, 99.0, 0.01),
            (*key, "only:single.2", 2.0, 98.0, 0.02),
        ]
    pictures = pictures_of(rows)
    table = block_table(pd.concat([blocks, third]), pictures, TOP, RESAMPLING).set_index("block")
    assert table["only_in_noise"].tolist() == [0.0, 1.0, 1.0]
    assert table["only_rank"].tolist() == [1.0, 2.5, 2.5]
    trust = trust_metrics(pictures, table.reset_index(), RESAMPLING)
    assert trust["blocks_in_noise"] == 2.0
    assert trust["split_half_tau"] == pytest.approx(1.0)
    assert trust["friedman_p"] < 0.05


def test_controls_have_columns_of_their_own(blocks: pd.DataFrame) -> None:
    """Noise of the block's norm, and what is left of the bleeding without the block."""
    pictures = measured(
        {
            "full": [1.0] * 4,
            "only:double.0": [0.5] * 4,
            "only:single.1": [0.5] * 4,
            "random:double.0": [-0.5] * 4,
            "random:single.1": [0.0] * 4,
        }
    )
    pictures.loc[pictures["variant"] == "random:double.0", "mse_to_none"] = 400.0
    plain = [("without-trigger-0", 0, f"without:{block}", 0.0, 0.0, np.nan) for block in "ab"]
    left = pictures_of(plain).assign(mse_to_none=[5.0, 30.0])
    left["variant"] = ["without:double.0", "without:single.1"]
    table = block_table(blocks, pd.concat([pictures, left]), TOP, RESAMPLING).set_index("block")
    assert table["random_mse_to_none"].tolist() == [400.0, 100.0]
    assert table["random_recovery"].tolist() == [-0.5, 0.0]
    assert table["bleed_stopped"].tolist() == pytest.approx([1 - 5 / 25, 1 - 30 / 25])
    metrics = effect_metrics(pictures, table.reset_index())
    assert metrics["learnt_over_noise"] == pytest.approx((0.25 + 1.0) / 2)


def test_one_prompt_and_one_seed_are_an_anecdote() -> None:
    """Nothing is known of other prompts then."""
    one = pictures_of([("develop-0", 0, "full", 1.0, 0.0, 1.0)])
    assert is_anecdotal(one)
    assert not is_anecdotal(measured({"full": [1.0] * 4}))
