"""Which stages a run is for where nobody names any: `make run`, the flow and the deployments ask.

    python -m flows.targets      prints them, space between; nothing means all stages

A LoRA from elsewhere in split.adapter needs no training of ours, and `dvc repro` without a target
would train all the same: DVC runs every stage of dvc.yaml, whoever needs it. Imports no prefect.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from flows.graph import read_edges
from stages.contracts.errors import BlocklensError

FIRST: Final = "split"
"""The first stage that reads the LoRA."""
_log = logging.getLogger("flows.targets")  # run as a program, __name__ is another


def default_targets(root: Path) -> tuple[str, ...]:
    """Return the stages to ask DVC for: none, for all, or the last ones that use a foreign LoRA.

    Foreign is a LoRA that no stage of dvc.yaml has among its outputs.

    Raises:
        GraphError: DVC refuses the graph.
    """
    stages = _read(root / "dvc.yaml").get("stages") or {}
    adapter = _adapter(root)
    if FIRST not in stages or adapter is None or adapter in _outputs(stages):
        return ()
    edges = read_edges(root)
    reached = {FIRST}
    while more := {after for before, after in edges if before in reached} - reached:
        reached |= more
    last = tuple(sorted(reached - {before for before, _ in edges}))
    _log.info("%s is from elsewhere: nothing is trained (dvc repro train does it)", adapter)
    return last


def main() -> None:
    """Print the stages; exit code 1 with the reason if they cannot be told."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        sys.stdout.write(" ".join(default_targets(Path.cwd())) + "\n")
    except BlocklensError as error:
        sys.exit(str(error))


def _adapter(root: Path) -> PurePosixPath | None:
    """Return split.adapter of params.yaml; None in a pipeline that has none."""
    params = _read(root / "params.yaml")
    split = params.get(FIRST)
    adapter = split.get("adapter") if isinstance(split, dict) else None
    return PurePosixPath(adapter) if isinstance(adapter, str) else None


def _outputs(stages: dict[str, Any]) -> set[PurePosixPath]:
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {PurePosixPath(next(iter(out)) if isinstance(out, dict) else out) for out in outs}


def _read(path: Path) -> dict[str, Any]:
    """Return what a YAML file maps; nothing if there is none: DVC says what is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


if __name__ == "__main__":
    main()
