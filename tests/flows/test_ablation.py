"""The ablation's page, and the whole command in a clone: stopped, gone on with, and complete."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.ablation import METRICS, missing_cells, page
from flows.experiments.ablation_cells import Cell, load_cells
from flows.experiments.dvc_experiments import Experiment, finished_experiments
from tests.flows.conftest import wait_until
from tests.small_run import clone, read_params, write_params

ROOT = Path(__file__).parents[2]
GRID = "factors: {train.rank: [1]}\nfollow: {train.alpha: train.rank}\n"
KEPT_PICTURES = 4
NUMBERS = {
    "adapter_bytes": 123456,
    "improvement": 0.4567,
    "selected_step": 2,
    "trainable_parameters": 98765,
    "validation_loss": 0.25,
    "validation_loss_base": 0.5,
}


def two_cells(folder: Path) -> list[Cell]:
    """Return the cells of a small grid over the project's params."""
    (folder / "grid.yaml").write_text(GRID, encoding="utf-8")
    return load_cells(folder / "grid.yaml", ROOT / "params.yaml", ("train",))


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of the page's table, head and rule left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_page_has_a_row_per_cell(tmp_path: Path) -> None:
    """Every figure stands under its column, the change in words, the command at the top."""
    cells = two_cells(tmp_path)
    finished = {
        cell.name: Experiment(cell.params, {**NUMBERS, "selected_step": number})
        for number, cell in enumerate(cells)
    }
    text = page(cells, finished, "python -m flows.ablation --grid grid.yaml")
    assert "Written by `python -m flows.ablation --grid grid.yaml`" in text
    assert "(and `train.alpha` along with `train.rank`)" in text
    assert "loss\nis 0.500000" in text
    figures = ["98,765", "123,456"]
    assert rows_of(text) == [
        ["default", "0.250000", "45.7 %", "0", *figures, cells[0].name],
        ["train.rank: 1", "0.250000", "45.7 %", "1", *figures, cells[1].name],
    ]


def test_finished_cells_are_not_missing(tmp_path: Path) -> None:
    """A cell is there when its name and all its params are."""
    cells = two_cells(tmp_path)
    done = Experiment(cells[0].params, dict(NUMBERS))
    assert missing_cells(cells, {}) == cells
    assert missing_cells(cells, {cells[0].name: done}) == cells[1:]
    other = Experiment(cells[1].params, dict(NUMBERS))
    assert missing_cells(cells, {cells[0].name: other}) == cells


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone with quick params and a small grid, on a machine where git has no user."""
    for name in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", "/dev/null")
    folder = clone(tmp_path / "clone")
    params = read_params(folder)
    quick = {
        "steps": 2,
        "warmup_steps": 0,
        "validation_every": 2,
        "checkpoint_every": 2,
        "sample_every": 2,
    }
    params["train"] |= {**quick, "probe_pictures": 1}
    for pictures in ("train", "validation"):
        files = sorted((folder / "data/demo" / pictures).iterdir())
        for picture in [path for path in files if path.suffix != ".txt"][KEPT_PICTURES:]:
            picture.unlink()
            picture.with_suffix(".txt").unlink(missing_ok=True)
    params["encode"]["sample_prompts"] = params["encode"]["sample_prompts"][:1]
    write_params(folder, params)
    (folder / "grid.yaml").write_text(GRID, encoding="utf-8")
    author = ["-c", "user.name=toy", "-c", "user.email=toy@example.org"]
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", *author, "commit", "-qm", "clone"], cwd=folder, check=True)
    return folder


def experiment_names(project: Path) -> list[str]:
    """Return the names of the experiments that git has, in the order of names."""
    command = ["git", "for-each-ref", "--format=%(refname)", "refs/exps"]
    listed = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
    return sorted(
        name.rpartition("/")[2]
        for name in listed.stdout.split()
        if re.fullmatch(r"refs/exps/\w{2}/\w{38}/.+", name)
    )


def contents(project: Path) -> dict[str, bytes]:
    """Return all files of a working tree outside .git, .dvc and local state."""
    skipped = {".git", ".dvc", ".blocklens"}
    return {
        name.as_posix(): path.read_bytes()
        for path in sorted(project.rglob("*"))
        if path.is_file()
        and (name := path.relative_to(project)).parts[0] not in skipped
        and "__pycache__" not in name.parts
    }


@pytest.mark.slow
def test_the_command_in_a_fresh_clone(
    committed: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    """Ctrl-C keeps the finished cell, the next call runs the other one, a third one runs none.

    The working tree, its uncommitted change included, is the same but for the page, and the page
    says what the experiments' metrics say.
    """
    (committed / "README.md").write_text("changed\n", encoding="utf-8")
    before = contents(committed)
    command = ("-m", "flows.ablation", "--grid", "grid.yaml", "--out", "docs/ablation.md")
    first = start_python(*command, directory=committed)
    copies = committed / ".dvc/tmp/exps/standalone"
    wait_until(
        lambda: bool(experiment_names(committed) and [*copies.glob("tmp*/data/encode/*")]),
        "one cell is finished, the other one goes on",
        900,
    )
    os.killpg(first.pid, signal.SIGINT)
    output, _ = first.communicate(timeout=100)
    assert first.returncode == 130, output
    assert "the same command goes on" in output.splitlines()[-1]
    assert contents(committed) == before
    kept = experiment_names(committed)
    assert [name.rpartition("-")[0] for name in kept] == ["default"]

    second = start_python(*command, directory=committed)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output
    assert "2 cells, 1 of them to run" in output
    after = contents(committed)
    text = after.pop("docs/ablation.md").decode()
    before.pop("docs/ablation.md", None)
    assert after == before
    assert output.endswith(text)

    found = finished_experiments(committed, METRICS)
    rows = rows_of(text)
    assert [row[-1] for row in rows] == [kept[0], *sorted(set(found) - set(kept))]
    for row, alpha in zip(rows, (8, 1), strict=True):
        experiment = found[row[-1]]
        assert experiment.params["train"]["alpha"] == experiment.params["train"]["rank"] == alpha
        metrics = experiment.metrics
        assert row[1:6] == [
            f"{metrics['validation_loss']:.6f}",
            f"{100 * metrics['improvement']:.1f} %",
            str(metrics["selected_step"]),
            f"{metrics['trainable_parameters']:,}",
            f"{metrics['adapter_bytes']:,}",
        ]
    sizes = [found[row[-1]].metrics["trainable_parameters"] for row in rows]
    assert sizes[0] == 8 * sizes[1]

    third = subprocess.run(
        [sys.executable, *command], cwd=committed, capture_output=True, text=True, timeout=100
    )
    assert third.returncode == 0, third.stderr
    assert "2 cells, 0 of them to run" in third.stderr
    assert third.stdout == text
