"""The model card says what was measured, and leaves out what was not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from flows.card import write_card
from stages.contracts.params import load_params

ROOT = Path(__file__).parents[2]


def card(tmp_path: Path, only: list[float]) -> str:
    """Return the card of two blocks with these recoveries alone."""
    blocks = pd.DataFrame(
        {
            "block": ["double.0", "single.0"],
            "share": [0.6, 0.4],
            "share_low": [0.5, 0.3],
            "share_high": [0.7, 0.5],
            "only_recovery": only,
            "bytes": [2000, 1000],
        }
    )
    metrics = tmp_path / "metrics.json"
    slim = {"blocks_kept": 1, "bytes_ratio": 0.5, "recovery": 0.93, "recovery_low": 0.91}
    metrics.write_text(json.dumps(slim), encoding="utf-8")
    return write_card(load_params(ROOT / "params.yaml"), blocks, metrics, [])


def test_pictures_that_were_not_drawn_have_no_number(tmp_path: Path) -> None:
    """Without `only` in render.modes there is a dash, never `nan`."""
    assert "| double.0 | 60.0% | 50.0% to 70.0% | 0.25 | 2,000 |" in card(tmp_path, [0.25, 0.1])
    drawn_none = card(tmp_path, [np.nan, np.nan])
    assert "nan |" not in drawn_none
    assert "| double.0 | 60.0% | 50.0% to 70.0% | – | 2,000 |" in drawn_none


def test_an_interval_is_no_guarantee(tmp_path: Path) -> None:
    """Its lower end is called that: from a few prompts the truth is below it too often."""
    text = card(tmp_path, [0.25, 0.1])
    assert "0.93 of the effect (interval from\n0.91," in text
    assert "at least" not in text
