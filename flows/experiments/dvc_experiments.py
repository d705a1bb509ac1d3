"""Trainings as DVC experiments: run in a copy of the commit, and read from `dvc exp show`.

`dvc exp run --temp` and not the queue: the queue's workers are processes of their own that
outlive a Ctrl-C. The copy holds what git holds, so all inputs must be committed; a training that
was stopped keeps its state here and not in the copy, which is deleted.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flows import processes
from flows.environment import child_environment
from flows.failure import failure_message
from flows.graph import DVC, run_dvc, time_limit_s
from flows.repository import committer, run_git
from flows.repro import StageFailedError
from stages.contracts.errors import BlocklensError, Problem
from stages.contracts.params import Params

PARAMS: Final = "params.yaml"
Recorded = tuple[dict[str, Any], dict[str, dict[str, float]]]
"""Params, and metrics by file."""
_FAILED: Final = re.compile(r"^ERROR: failed to reproduce '(?P<stage>[^']+)'")


class UncommittedError(BlocklensError, RuntimeError):
    """Inputs of the pipeline that the commit lacks or has otherwise."""


@dataclass(frozen=True)
class Experiment:
    """A finished experiment of the current commit: its params and the metrics of one file."""

    params: dict[str, Any]
    metrics: dict[str, float]


def require_committed(root: Path, params: Params) -> None:
    """Raise UncommittedError unless code, params and data are what the current commit has.

    Outputs, dvc.lock and pages may differ: no training reads them.
    """
    inputs = [
        path
        for path in (
            params.fetch.folder,
            params.prepare.images,
            params.prepare.validation_images,
            params.caption.folder,
        )
        if path and not Path(path).is_absolute()
    ]
    problems = [
        Problem(path, "not in git, and an experiment runs in a copy of the commit", _add(path))
        for path in sorted(set(inputs))
        if not run_git(root, "ls-files", "--", path, f"{path}.dvc")
    ]
    tracked = ["stages", "dvc.yaml", PARAMS, *inputs]
    status = run_git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--", *tracked)
    problems += [
        Problem(entry[3:], "not as in the commit", "Commit it, or take the change back")
        for entry in status.split("\0")
        if entry[2:3] == " "
    ]
    if problems:
        raise UncommittedError("an experiment belongs to a commit", problems)


def finished_experiments(root: Path, metrics_path: str) -> dict[str, Experiment]:
    """Return the finished experiments of the current commit by name, as `dvc exp show` has them.

    Left out: what still runs (or was killed, which DVC shows as running), and what lacks params
    or metrics.
    """
    found = {}
    for name, (params, metrics) in read_experiments(root).items():
        if params and metrics.get(metrics_path):
            found[name] = Experiment(params, metrics[metrics_path])
    return found


def _forget_broken_notes(root: Path) -> None:
    """Delete what DVC had half written of a run that was stopped: `dvc exp show` refuses it.

    Only while no experiment runs here, which the caller's own turn at the checkout sees to.
    """
    for note in (root / ".dvc/tmp/exps/standalone/run").glob("*/*.run"):
        try:
            json.loads(note.read_bytes())
        except ValueError:
            shutil.rmtree(note.parent)


def read_experiments(root: Path) -> dict[str, Recorded]:
    """Return params and metrics of the finished experiments of the current commit, by name.

    Metrics are by file. An experiment has those of stages after its last one, too, as the commit
    has them.
    """
    _forget_broken_notes(root)
    head = run_git(root, "rev-parse", "HEAD")
    found: dict[str, Recorded] = {}
    for commit in json.loads(run_dvc(root, "exp", "show", "--json")):
        if commit["rev"] != head:
            continue
        for experiment in commit["experiments"] or []:
            data = experiment["revs"][0]["data"]
            if experiment["executor"] is not None or data is None:
                continue
            params = data["params"].get(PARAMS, {}).get("data") or {}
            metrics = {path: each.get("data") or {} for path, each in data["metrics"].items()}
            found[experiment["name"]] = (params, metrics)
    return found


def run_experiment(
    root: Path,
    name: str,
    stage: str,
    changes: Mapping[str, object],
    on_line: Callable[[str], None],
) -> None:
    """Run the pipeline up to `stage` with changed params as an experiment of the current commit.

    Raises StageFailedError with the failed stage's own message, or where the stages take longer
    than their time-outs allow together. Whatever ends it early, Ctrl-C
    included, leaves no process behind and the working tree as it was.
    """
    # With the file's name in front, a colon in a value is no file's name.
    settings = [f"{PARAMS}:{key}={json.dumps(value)}" for key, value in changes.items()]
    options = [part for setting in settings for part in ("--set-param", setting)]
    limit_s = time_limit_s(root, stage)
    finished = processes.run_streamed(
        [*DVC, "exp", "run", "--temp", "--name", name, *options, stage],
        directory=root,
        environment=_environment(root),
        on_line=on_line,
        timeout_s=limit_s,
    )
    if finished.timed_out:
        said = f"stopped after {limit_s:g} s, the timeout_s of its stages in dvc.yaml together"
        raise StageFailedError(f"{name}: {said}")
    if finished.exit_code != 0:
        raise StageFailedError(f"{name}: {_reason(stage, finished.lines)}")


def _reason(stage: str, lines: Sequence[str]) -> str:
    """Return the message of the stage that failed; DVC writes its own part twice."""
    for index, line in enumerate(lines):
        if match := _FAILED.match(line):
            begin = max(i for i in range(index + 1) if i == 0 or _starts_stage(lines[i]))
            return failure_message(match["stage"], lines[begin : index + 1])
    return failure_message(stage, lines)


def _starts_stage(line: str) -> bool:
    return line.startswith("Running stage '")


def _environment(root: Path) -> dict[str, str]:
    environment = child_environment()
    state = environment.get("BLOCKLENS_STATE", ".blocklens")
    environment["BLOCKLENS_STATE"] = str((root / state).absolute())
    return {**environment, **committer(root, environment)}


def _add(path: str) -> str:
    return f"git add {path} (or dvc add) and commit, or give its absolute path"
