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


def start_fetch(folder: Path, params: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the stage, with its output in `folder`/fetch and the Hub's cache in `folder`/home."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.fetch", "--params", params, "--out", folder / "fetch"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "BLOCKLENS_STATE": str(folder / "state"),  # runs at once do not wait for one another
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            **environment,
        },
    )


def run_fetch(folder: Path, params: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the stage to its end."""
    with start_fetch(folder, params, **environment) as process:
        stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def files_holding(folder: Path, secret: str) -> list[Path]:
    """Return the files below `folder` that hold `secret` or one of its halves.

    Bytes are looked at, so that databases and archives count too.
    """
    half = len(secret) // 2
    parts = [part.encode() for part in (secret[:half], secret[half:])]
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and any(part in path.read_bytes() for part in parts)
    ]
