"""Contact sheets of the lens: what stands where, with which words."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.imaging.heatmap import HeatmapStyle, Scale
from stages.imaging.lens_sheet import MapLook, drawn_modes, lens_sheets
from stages.imaging.metrics import mse
from stages.imaging.rendered_pairs import RenderedPair, load_pairs, measure_picture

LEVELS = {
    "none": 40,
    "full": 140,
    "repeat": 140,
    "only:double.0": 60,
    "only:single.1": 41,
    "without:double.0": 120,
    "without:single.1": 139,
    "strength:0.5": 90,
}
NUMBERS = {
    block: {
        "only_recovery": 0.1,
        "without_recovery": float("nan"),
        "share": 0.5,
        "only_in_noise": noise,
    }
    for block, noise in (("double.0", 0.0), ("single.1", 1.0))
}
LOOK = MapLook(HeatmapStyle("inferno", 0.6, text=True), Scale(50.0, shared=True), own=False, rows=9)


@pytest.fixture
def pairs(tmp_path: Path) -> list[RenderedPair]:
    """Two prompts in no order, the tenth and the second."""
    rows = []
    for prompt in ("develop-10", "develop-2"):
        for variant, level in LEVELS.items():
            file = f"{prompt}-{variant.replace(':', '-')}.png"
            Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(tmp_path / file)
            rows.append((prompt, f"text of {prompt}", 3, variant, file))
    table = pd.DataFrame(rows, columns=["prompt", "text", "seed", "variant", "file"])
    return load_pairs(table, tmp_path)


def test_pairs_come_in_the_order_of_params(pairs: list[RenderedPair]) -> None:
    """2 before 10, and each variant with what it is compared with."""
    assert [pair.folder for pair in pairs] == ["develop-2-3", "develop-10-3"]
    pair = pairs[0]
    assert pair.reference("only:double.0") is pair.none
    assert pair.reference("without:double.0") is pair.full
    assert pair.reference("without-group:early") is pair.full
    assert pair.reference("repeat") is pair.full
    row = measure_picture(pair, "strength:0.5")
    assert row["mse_to_none"] == mse(pair.load("strength:0.5"), pair.none) == 2500.0
    assert row["direction"] == pytest.approx(0.5)
    assert row["recovery"] == pytest.approx(0.75)
    assert row["difference_peak"] == 50.0


def test_no_effect_has_no_recovery_and_no_direction(pairs: list[RenderedPair]) -> None:
    """0 / 0 is not a number, and not 0."""
    pair = pairs[0]
    same = RenderedPair(pair.prompt, pair.seed, pair.text, pair.none, pair.none, pair.files)
    row = measure_picture(same, "only:double.0")
    assert np.isnan([row["recovery"], row["direction"]]).all()


def test_each_mode_has_its_sheet_and_choices_are_on_the_first(pairs: list[RenderedPair]) -> None:
    """Pictures of choices stand on the sheet of single blocks, whose pictures are all there."""
    assert drawn_modes(pairs) == ["only", "without"]
    (only,) = lens_sheets(pairs[0], "only", NUMBERS, "a note", LOOK)
    (without,) = lens_sheets(pairs[0], "without", NUMBERS, "a note", LOOK)
    for variant in ("none", "full", "only:double.0", "only:single.1", "strength:0.5"):
        assert (only == LEVELS[variant]).all(axis=2).sum() >= 176 * 176, variant
    assert (without == LEVELS["without:double.0"]).all(axis=2).sum() >= 176 * 176
    assert (without == LEVELS["strength:0.5"]).all(axis=2).sum() < 176 * 176


def test_the_note_and_the_noise_are_written(pairs: list[RenderedPair]) -> None:
    """Other words are other pixels: a block in the noise is shown so."""
    louder = {block: {**row, "only_in_noise": 0.0} for block, row in NUMBERS.items()}
    (tied,) = lens_sheets(pairs[0], "only", NUMBERS, "a note", LOOK)
    (untied,) = lens_sheets(pairs[0], "only", louder, "a note", LOOK)
    (other,) = lens_sheets(pairs[0], "only", NUMBERS, "anecdotal", LOOK)
    assert not np.array_equal(tied, untied)
    assert not np.array_equal(tied, other)
