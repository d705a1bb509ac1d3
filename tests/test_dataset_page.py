"""docs/dataset.md names what stage prepare has: no param, column, metric or format is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from stages.contracts.params import PrepareParams, load_params
from stages.contracts.tables import MANIFEST
from stages.imaging import review
from stages.imaging.folder import PICTURE_SUFFIXES
from stages.prepare import prepare

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dataset.md").read_text(encoding="utf-8")


def test_every_param_column_metric_and_format_is_named(tmp_path: Path) -> None:
    """A new one is written down, or this fails."""
    for index, split in enumerate(("train", "validation")):
        (tmp_path / split).mkdir()
        Image.new("RGB", (64, 64), (index, 0, 0)).save(tmp_path / split / f"{split}.png")
    small = {"size_px": 64, "min_side_px": 32}
    params = load_params(ROOT / "params.yaml").prepare.model_copy(update=small)
    out = tmp_path / "out"
    prepare(params, images=tmp_path / "train", validation=tmp_path / "validation", out=out)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    names = {*PrepareParams.model_fields, *MANIFEST.schema.columns, *metrics, *PICTURE_SUFFIXES}
    assert len(names) > 60
    assert [name for name in sorted(names) if not re.search(rf"\b{name.strip('.')}\b", PAGE)] == []


def test_every_warning_and_kind_is_named() -> None:
    """The words of the log are those of the page, and so are the numbers of pictures."""
    kinds = {
        review.EXACT, review.NEAR, review.BLURRED, review.BLACK, review.UNIFORM, review.UPSCALED,
        review.BARS, review.COUNT, review.VARIETY,
    }  # fmt: skip
    assert all(f"| {kind} |" in PAGE for kind in kinds)
    for kind, (fewest, most) in review.PICTURES_FOR.items():
        assert f"| `{kind}` | {fewest} to {most} |" in PAGE


@pytest.mark.parametrize("name", ["size_px", "min_side_px", "max_pixels", "max_aspect"])
def test_limits_are_those_of_the_presets(name: str) -> None:
    """The table of limits is read from the files that it names."""
    presets = ("nano-flux.yaml", "flux1-dev-24gb.yaml")
    values = [getattr(load_params(ROOT / "presets" / file).prepare, name) for file in presets]
    shown = " | ".join(f"{v:,}" if v > 9999 else str(v) for v in values)
    assert f"| `{name}` | {shown} |" in PAGE
