"""A run that names no stage is for the LoRA of split.adapter, wherever that is from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.overrides import apply_overrides
from flows.pipeline import pipeline
from flows.targets import default_targets
from tests.flows.conftest import ROOT, run_dvc
from tests.flows.test_pipeline import task_runs

STAGES = """\
stages:
  train:
    cmd: echo trained > adapter.txt
    outs: [adapter.txt]
  split:
    cmd: cat ${split.adapter} > parts.txt
    deps: [\"${split.adapter}\"]
    outs: [parts.txt]
  report:
    cmd: cat parts.txt > page.txt
    deps: [parts.txt]
    outs: [page.txt]
"""
ELSEWHERE = {"report.origin": "data/elsewhere"}
FOREIGN = "loras/stranger.txt"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A project of three stages that never ran, its LoRA made by the first of them."""
    folder = tmp_path / "small"
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    run_dvc(folder, "init", "--quiet")
    (folder / "loras").mkdir()
    (folder / FOREIGN).write_text("stranger\n")
    (folder / "dvc.yaml").write_text(STAGES)
    shutil.copy(ROOT / "params.yaml", folder)
    apply_overrides(folder, {**ELSEWHERE, "split.adapter": "adapter.txt"})
    return folder


def test_a_lora_of_ours_needs_all_stages(small: Path, project: Path) -> None:
    """No names, for DVC that means all; so it is in a pipeline that knows no LoRA."""
    assert default_targets(small) == ()
    assert default_targets(project) == ()
    assert default_targets(ROOT) == ()


@pytest.mark.usefixtures("prefect_server")
def test_a_lora_from_elsewhere_is_used_and_nothing_is_trained(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow without targets runs what reads it; a target that is named is run."""
    apply_overrides(small, {"split.adapter": FOREIGN})
    assert default_targets(small) == ("report",)
    monkeypatch.chdir(small)
    state = pipeline(return_state=True)
    assert state.is_completed(), state.message
    assert sorted(task_runs(state)) == ["report", "split"]
    assert (small / "page.txt").read_text() == "stranger\n"
    assert not (small / "adapter.txt").exists()
    assert [*task_runs(pipeline(targets=["train"], return_state=True))] == ["train"]


def test_the_command_is_what_make_run_asks(small: Path) -> None:
    """One line for the shell: the stages, or nothing; the reason goes to the other stream."""
    command = [sys.executable, "-m", "flows.targets"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = {}
    for adapter in ("adapter.txt", FOREIGN):
        apply_overrides(small, {"split.adapter": adapter})
        done = subprocess.run(
            command, cwd=small, env=environment, capture_output=True, text=True, check=True
        )
        said[adapter] = done.stdout
        assert ("nothing is trained" in done.stderr) is (adapter == FOREIGN)
    assert said == {"adapter.txt": "\n", FOREIGN: "report\n"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "targets=$$(python -m flows.targets) && dvc repro $$targets ||" in makefile


def test_a_pipeline_without_split_has_no_targets_of_its_own(small: Path) -> None:
    """Params may be those of a whole pipeline where dvc.yaml has a part of it."""
    text = yaml.safe_load((small / "dvc.yaml").read_text(encoding="utf-8"))
    (small / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": text["stages"]["train"]}}))
    params = yaml.safe_load((small / "params.yaml").read_text(encoding="utf-8"))
    params["split"]["adapter"] = FOREIGN
    (small / "params.yaml").write_text(yaml.safe_dump(params))
    assert default_targets(small) == ()
