"""Strengths, bands and mixes in tables of their own."""

import numpy as np
import pytest

from stages.contracts.tables import STRENGTHS, VARIANTS
from stages.lens.rankings import Resampling
from stages.lens.variant_table import strength_table, variant_table
from tests.lens.test_block_table import measured

RESAMPLING = Resampling(resamples=200, confidence=0.9, seed=0)


def test_every_choice_but_single_blocks_has_a_row() -> None:
    """Means over prompts and seeds with an interval; single blocks have a table of their own."""
    pictures = measured(
        {
            "none": [0.0] * 4,
            "full": [1.0] * 4,
            "only:double.0": [0.5] * 4,
            "only-group:early": [0.1, 0.3, 0.2, 0.4],
            "strength:0.5": [0.6] * 4,
            "strength:1": [1.0] * 4,
        }
    )
    table = variant_table(pictures, RESAMPLING)
    VARIANTS.schema.validate(table)
    names = ["full", "none", "only-group:early", "strength:0.5", "strength:1"]
    assert table["variant"].tolist() == names
    band = table.set_index("variant").loc["only-group:early"]
    assert band["recovery"] == pytest.approx(0.25)
    assert 0.1 <= band["recovery_low"] < 0.25 < band["recovery_high"] <= 0.4
    assert band["pictures"] == 4
    strengths = strength_table(table)
    STRENGTHS.schema.validate(strengths)
    assert strengths["strength"].tolist() == [0.0, 0.5, 1.0]
    assert strengths["recovery"].tolist() == pytest.approx([0.0, 0.6, 1.0])


def test_no_recovery_without_an_effect() -> None:
    """Where the adapter changes a picture not at all, the mean is empty and not of the others."""
    pictures = measured({"full": [1.0, np.nan, 1.0, 1.0], "none": [0.0, np.nan, 0.0, 0.0]})
    table = variant_table(pictures, RESAMPLING)
    assert table[["recovery", "recovery_low", "recovery_high"]].isna().all(axis=None)
