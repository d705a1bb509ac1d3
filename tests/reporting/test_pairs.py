"""Pairs of prompt and seed come in the order a person wrote them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stages.reporting.pairs import DEVELOP, WITHOUT_TRIGGER, read_pairs


def test_pairs_are_in_number_order() -> None:
    """The tenth prompt comes after the second, whatever text sorting says."""
    rows = [
        {
            "prompt": f"develop-{n}",
            "text": f"prompt {n}",
            "seed": s,
            "variant": "none",
            "file": "x.png",
        }
        for n in (10, 2)
        for s in (11, 3)
    ]
    rows.append({**rows[0], "prompt": "without-trigger-0"})
    frame = pd.DataFrame(rows)
    pairs = read_pairs(frame, Path("render"), DEVELOP)
    assert [pair.key for pair in pairs] == [
        "develop-2-3",
        "develop-2-11",
        "develop-10-3",
        "develop-10-11",
    ]
    assert pairs[0].files == {"none": Path("render/x.png")}
    assert pairs[0].words == "“prompt 2”, seed 3"
    assert [p.prompt for p in read_pairs(frame, Path(), WITHOUT_TRIGGER)] == ["without-trigger-0"]
