"""What dvc.lock says that the stages made.

Read with libyaml, in a tenth of the time: the file is long, and a flow reads it at every stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def locked_outputs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return `outs` of each stage in a folder's dvc.lock (path, md5, size); empty without one."""
    lock = folder / "dvc.lock"
    if not lock.is_file():
        return {}
    document = yaml.load(lock.read_bytes(), yaml.CSafeLoader) or {}
    stages: dict[str, dict[str, Any]] = document.get("stages") or {}
    return {name: stage.get("outs", []) for name, stage in stages.items()}
