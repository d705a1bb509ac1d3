"""`python -m stages.fetch` as dvc.yaml runs it, against a Hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def write_params(path: Path, **fetch: Any) -> Path:
    """Write params.yaml with other values in its section `fetch`."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    document["fetch"] |= fetch
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def run_fetch(folder: Path, params: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the stage, with its output in `folder`/fetch and the Hub's cache in `folder`/home."""
    return subprocess.run(
        [sys.executable, "-m", "stages.fetch", "--params", params, "--out", folder / "fetch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            **environment,
        },
    )
