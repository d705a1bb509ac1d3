"""A project in which a sweep over train.rank takes seconds: real params, one small stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from tests.flows.conftest import run_dvc
from tests.repositories import git

ROOT = Path(__file__).parents[2]
STAGES = """\
stages:
  train:
    cmd: sh train.sh ${train.rank}
    params: [train.rank]
    deps: [train.sh]
    outs: [adapter.txt]
    metrics: [{data/train/metrics.json: {cache: false}}]
"""
TRAIN = """\
mkdir -p data/train
if [ -n "$HOOK" ] && [ -f "$HOOK" ]; then . "$HOOK"; fi
echo "rank $1" > adapter.txt
echo "{\\"validation_loss\\": 0.$1}" > data/train/metrics.json
"""
"""HOOK is a file outside: a test makes it to let a training wait or fail."""


def make_project(folder: Path) -> Path:
    """Make the project, committed after a `dvc repro`, with our flows and deployments."""
    git(folder.parent, "init", "--quiet", str(folder))
    run_dvc(folder, "init", "--quiet")
    shutil.copytree(ROOT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copy(ROOT / "prefect.yaml", folder)
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    inputs = (
        params["fetch"]["folder"],
        params["prepare"]["images"],
        params["prepare"]["validation_images"],
        params["caption"]["folder"],
        "stages",
    )
    for name in filter(None, inputs):  # a sweep asks that they are committed, and reads none
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "file").write_text("input\n")
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "train.sh").write_text(TRAIN)
    with (folder / ".gitignore").open("a", encoding="utf-8") as ignored:
        ignored.write("__pycache__/\n.blocklens/\n")
    run_dvc(folder, "repro", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "project")
    return folder
