"""A sweep runs what is missing, names what failed, and shows all experiments side by side."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows.experiments.combination_runs import missing_combinations
from flows.experiments.dvc_experiments import read_experiments
from flows.experiments.product import Combination
from flows.experiments.sweep_page import draw_plot, sweep_rows, write_page
from flows.sweep import sweep
from stages.contracts.params import load_params
from tests.flows.sweep_project import make_project
from tests.flows.test_pipeline import artifacts, task_runs
from tests.repositories import git

PARAMS = Path(__file__).parents[2] / "params.yaml"


def cell(name: str, rank: int) -> Combination:
    """Return a combination with one changed param."""
    params = load_params(PARAMS).model_dump(mode="json")
    params["train"]["rank"] = rank
    return Combination(name, {"train.rank": rank}, params)


def metrics(loss: float, kept: int) -> dict[str, dict[str, float]]:
    """Return the metrics of an experiment by file."""
    return {
        "data/train/metrics.json": {"validation_loss": loss, "pictures": 24},
        "data/slim/metrics.json": {"blocks_kept": kept},
    }


def test_rows_have_what_differs(tmp_path: Path) -> None:
    """Params first; equal metrics and those of stages that did not run are left out."""
    cells = [cell("four", 4), cell("eight", 8), cell("failed", 16)]
    recorded = {
        "four": (cells[0].params, metrics(0.5, 9)),
        "eight": (cells[1].params, metrics(0.25, 7)),
    }
    rows = sweep_rows(cells, recorded, ["encode", "train"])
    assert rows == {
        "four": {"train.rank": 4, "train.validation_loss": 0.5},
        "eight": {"train.rank": 8, "train.validation_loss": 0.25},
    }
    write_page(tmp_path / "new" / "page.html", rows, ["train.rank"], "abc1234")
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert draw_plot(rows, ["train.rank"]) in text
    assert "<th>train.validation_loss ↓</th>" in text
    assert "<td>eight</td><td>8</td><td>0.25</td>" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_param_and_a_metric_of_one_name_are_two_columns() -> None:
    """slim.recovery is what is asked for, and what the held-out pictures show."""
    params = load_params(PARAMS).model_dump(mode="json")
    cells = [Combination(str(asked), {"slim.recovery": asked}, params) for asked in (0.5, 0.9)]
    recorded = {
        each.name: (params, {"data/slim/metrics.json": {"recovery": measured}})
        for each, measured in zip(cells, (0.625, 0.875), strict=True)
    }
    rows = sweep_rows(cells, recorded, ["slim"])
    assert rows["0.5"] == {"slim.recovery": 0.5, "slim.recovery, measured": 0.625}
    plot = draw_plot(rows, ["slim.recovery"])
    assert ">slim.recovery</text>" in plot
    assert ">slim.recovery, measured ↑</text>" in plot


def test_finished_experiments_are_not_missing() -> None:
    """An experiment is there when its name and all its params are."""
    cells = [cell("four", 4), cell("eight", 8)]
    assert missing_combinations(cells, {}) == cells
    assert missing_combinations(cells, {"four": (cells[0].params, {})}) == cells[1:]
    assert missing_combinations(cells, {"four": (cells[1].params, {})}) == cells


def run_sweep(project: Path, grid: dict[str, list[Any]], **options: Any) -> State[Any]:
    """Return the final state of a sweep in a project."""
    here = Path.cwd()
    os.chdir(project)
    try:
        return sweep(grid, **options, return_state=True)
    finally:
        os.chdir(here)


@pytest.mark.usefixtures("prefect_server")
def test_the_page_is_named_by_its_path(tmp_path: Path) -> None:
    """A page over HTTP may open no file: where the sweep's page lies is text to be copied."""
    project = make_project(tmp_path / "project")
    grid = {"train.rank": [4]}
    state = run_sweep(project, grid, target="train", page="pages/sweep.html", workers=False)
    assert state.is_completed(), state.message
    page = project / "pages/sweep.html"
    assert page.is_file()
    assert artifacts(state)["sweep-page"] == f"`{page.resolve()}`"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_sweep_of_the_whole_pipeline(small_run: Path, tmp_path: Path) -> None:
    """A second sweep runs what is new, the origin has all experiments, a failure is named."""
    origin = shutil.copytree(small_run, tmp_path / "origin", symlinks=True)
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "--message", "run")
    project = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(origin), str(project))
    with (project / ".dvc/config.local").open("w", encoding="utf-8") as file:
        file.write(f"[cache]\n    dir = {origin / '.dvc/cache'}\n")
    grid: dict[str, list[Any]] = {"slim.recovery": [0.3]}
    first = run_sweep(project, grid)
    assert first.is_completed(), first.message
    grid["slim.recovery"].append(0.98)
    second = run_sweep(project, grid, share=True, page="page.html")
    assert second.is_completed(), second.message
    names = [[*task_runs(state)] for state in (first, second)]
    assert [len(each) for each in names] == [1, 1]
    assert [each[0].rpartition("-")[0] for each in names] == ["recovery-0.3", "recovery-0.98"]
    found = artifacts(second)
    assert found["sweep"].count('"slim.recovery"') == len(grid["slim.recovery"])
    assert found["sweep-plot"].startswith("data:image/svg+xml;base64,")
    assert found["sweep-page"] == f"`{(project / 'page.html').resolve()}`"
    page = (project / "page.html").read_text(encoding="utf-8")
    for recorded in read_experiments(project).values():
        kept = recorded[1]["data/slim/metrics.json"]["blocks_kept"]
        assert f"<td>{recorded[0]['slim']['recovery']}</td>" in page
        assert f"<td>{kept}</td>" in page
    assert set(read_experiments(origin)) == {names[0][0], names[1][0]}
    assert git(project, "status", "--porcelain") == "?? page.html"

    failed = run_sweep(project, {"train.blocks": [["double.99"]]}, target="train")
    assert failed.is_failed()
    assert (failed.message or "").startswith("1 of 1 experiments failed:\nblocks-double.99-")
    assert "train: " in (failed.message or "")
    assert "double.99" in (failed.message or "").partition("train: ")[2]
