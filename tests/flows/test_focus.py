"""Chosen blocks are trained again at equal bytes, and the page says what came of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from flows.focus import focus
from flows.focus_plan import CURVE, RETRAIN, STRENGTHS, Focus, FocusError, plan_focus
from stages.contracts.params import Params, load_params
from tests.flows.test_pipeline import artifacts
from tests.repositories import git
from tests.small_run import read_params, write_params

PARAMS = Path(__file__).parents[2] / "params.yaml"


def params_with(**sections: Mapping[str, Any]) -> Params:
    """Return the project's params with other values in some sections."""
    params = load_params(PARAMS).model_dump(mode="json")
    for section, values in sections.items():
        params[section] |= values
    return Params.model_validate(params)


@pytest.fixture
def slimmed(tmp_path: Path) -> Path:
    """A project of which stage slim kept two of three blocks."""
    for file in (CURVE, STRENGTHS, RETRAIN):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / CURVE).write_text("blocks,bytes\n0,0\n1,100\n2,250\n3,400\n")
    (tmp_path / STRENGTHS).write_text("block,strength\ndouble.0,1.1\ndouble.1,0\nsingle.0,0.9\n")
    (tmp_path / RETRAIN).write_text('train:\n  blocks: ["double.0", "single.0"]\n')
    return tmp_path


def test_the_largest_rank_that_is_not_more_bytes(slimmed: Path) -> None:
    """400 bytes at rank 8 are 250 at rank 12.8 for the chosen ones; the scale stays."""
    params = params_with(train={"rank": 8, "alpha": 4.0})
    assert plan_focus(slimmed, params) == Focus(("double.0", "single.0"), 2, 3, 12, 6.0)


def test_runs_that_do_not_suit_are_refused(slimmed: Path) -> None:
    """Foreign adapters and ranks per phase or block, all named; and a gain of no rank at all."""
    settings = [{"blocks": ["double.0"], "rank": 4, "alpha": 4.0, "learning_rate": 0.001}]
    unsuited = params_with(
        train={"block_settings": settings},
        split={"adapter": "mine.safetensors"},
        report={"origin": "data/elsewhere"},
    )
    with pytest.raises(FocusError) as caught:
        plan_focus(slimmed, unsuited)
    text = str(caught.value)
    assert "split.adapter: mine.safetensors was not trained here. Set it to data/train/" in text
    assert "train.block_settings: gives ranks of its own. Set it to []" in text
    with pytest.raises(FocusError, match="2 of 3 blocks are kept: their bytes buy no higher rank"):
        plan_focus(slimmed, params_with(train={"rank": 1, "alpha": 1.0}))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_focus_of_a_whole_run(small_run: Path, tmp_path: Path) -> None:
    """Real trainings: equal bytes, the metrics of both, the slim stage's own recovery, pictures."""
    project = shutil.copytree(small_run, tmp_path / "project", symlinks=True)
    params = read_params(project)
    params["slim"]["recovery"] = 0.98  # some twenty blocks: enough for a rank that is no joke
    write_params(project, params)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "run")
    here = Path.cwd()
    os.chdir(project)
    try:
        state = focus("page/focus.md", return_state=True)
    finally:
        os.chdir(here)
    assert state.is_completed(), state.message
    found = json.loads((project / "page/focus.json").read_text(encoding="utf-8"))
    slim = json.loads((project / "data/slim/metrics.json").read_text(encoding="utf-8"))
    train = json.loads((project / "data/train/metrics.json").read_text(encoding="utf-8"))
    assert found["recovery_slim"] == pytest.approx(slim["recovery"], rel=1e-5)
    assert found["validation_loss"] == train["validation_loss"]
    assert found["validation_loss_again"] != train["validation_loss"]
    assert found["blocks_kept"] == slim["blocks_kept"]
    assert found["rank_again"] > found["rank"]
    one_rank = found["parameters_again"] / found["rank_again"]
    assert 0 <= found["parameters"] - found["parameters_again"] < one_rank
    assert found["bytes_again"] <= found["bytes"]
    text = (project / "page/focus.md").read_text(encoding="utf-8")
    chosen = yaml.safe_load((project / RETRAIN).read_text(encoding="utf-8"))["train"]["blocks"]
    assert ", ".join(f"`{block}`" for block in chosen) in text
    assert f"| few blocks, trained again | {slim['blocks_kept']} | {found['rank_again']} |" in text
    assert (project / "page/focus.jpg").stat().st_size > 1000
    assert pd.read_csv(project / STRENGTHS)["strength"].ne(0).sum() == slim["blocks_kept"]
    shown = artifacts(state)
    assert shown["focus"] == text
    assert shown["focus-pictures"].startswith("data:image/jpeg;base64,")
    changed = [line[3:] for line in git(project, "status", "--porcelain").splitlines()]
    assert [path for path in changed if not path.startswith(("dvc.lock", "data/slim/"))] == [
        "page/"
    ]
