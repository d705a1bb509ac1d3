"""The whole graph in small, as a project of its own that DVC really runs.

The settings make the pictures and the LoRA useless and the run quick; every stage, every file and
every hash is real.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
QUICK: dict[str, dict[str, Any]] = {
    "sampling": {"size_px": 64, "steps": 2, "batch": 16},
    "prompts": {"seeds": [0], "held_out_seeds": [100]},
    "prepare": {"size_px": 256, "min_side_px": 256},
    "encode": {"sizes_px": [64]},
    "train": {
        "steps": 12,
        "batch": 2,
        "warmup_steps": 2,
        "validation_every": 4,
        "validation_sigmas": [0.5],
        "checkpoint_every": 4,
        "sample_every": 12,
    },
    "attribute": {"nodes": 2, "prompts": [], "sigmas": [0.6], "resamples": 50},
    "evaluate": {"resamples": 50},
    "slim": {"sigmas": [0.6], "resamples": 50},
}


def environment() -> dict[str, str]:
    """Return the environment of a project's commands: this interpreter first, no telemetry."""
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, "PATH": os.pathsep.join(folders), "DVC_NO_ANALYTICS": "1"}


def clone(folder: Path) -> Path:
    """Copy what git has or would add into `folder`, make it a repository, set quick params."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    for section, values in QUICK.items():
        params[section] |= values
    for prompts in ("develop", "held_out", "without_trigger"):
        params["prompts"][prompts] = params["prompts"][prompts][:1]
    write_params(folder, params)
    return folder


def read_params(folder: Path) -> dict[str, Any]:
    """Return a clone's params."""
    params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    return params


def write_params(folder: Path, params: dict[str, Any]) -> None:
    """Write a clone's params."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in a clone and return its output."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1200,
    )


def reproduce(folder: Path) -> str:
    """Run `dvc repro` to its end and return what it said."""
    done = run(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(output: str) -> list[str]:
    """Return the stages that `dvc repro` really ran."""
    lines = output.splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]
