"""The plan of a run: which stages, in which order, after which others, with which hints.

Everything is read from DVC and dvc.yaml. There is no second graph here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import yaml

from flows.environment import child_environment
from stages.contracts.errors import BlocklensError, Problem

DVC: Final = (sys.executable, "-m", "dvc", "--wait-for-lock")
"""DVC of this interpreter. Without the flag it gives up on its lock after 3 s and fails."""

_PLANNED = re.compile(r"^Running stage '(?P<stage>.+)':$")
_EDGE = re.compile(r'^"(?P<before>[^"]+)" -> "(?P<after>[^"]+)";$')


class GraphError(BlocklensError, ValueError):
    """The pipeline cannot be read: DVC refuses it, or a hint in dvc.yaml is wrong."""


@dataclass(frozen=True)
class Hints:
    """How a stage wants to be orchestrated: `meta: {prefect: {...}}` of the stage in dvc.yaml.

    retries: how often a failed run is tried again. timeout_s: seconds until it is stopped; none
    means never.
    """

    retries: int = 0
    timeout_s: float | None = None


@dataclass(frozen=True)
class PlannedStage:
    """One stage to run: its DVC name, the stages it comes after, and its hints."""

    name: str
    after: tuple[str, ...]
    hints: Hints


def read_plan(root: Path, targets: Sequence[str] = ()) -> list[PlannedStage]:
    """Return the stages that `dvc repro TARGETS` visits in `root`, in the order it visits them.

    No targets means all of dvc.yaml. The order is DVC's own plan, read from a forced dry run,
    since new entries of dvc.lock are appended in the order in which stages finish.
    Raises GraphError with DVC's message where it refuses the graph or a target.
    """
    with ThreadPoolExecutor() as pool:  # each is a process that takes a second
        reading = pool.submit(read_edges, root)
        dry_run = run_dvc(root, "repro", "--dry", "--force", *targets)
        edges = reading.result()
    planned = (_PLANNED.match(line) for line in dry_run.splitlines())
    names = list(dict.fromkeys(match["stage"] for match in planned if match))
    after: dict[str, list[str]] = {name: [] for name in names}
    for before, name in edges:
        if name in after and before in after:
            after[name].append(before)
    hints = _read_hints(root, names)
    return [PlannedStage(name, tuple(sorted(after[name])), hints[name]) for name in names]


def time_limit_s(root: Path, target: str) -> float | None:
    """Return how long a run up to `target` may take: the time-outs of its stages together.

    None where one of them has none. Raises GraphError as `read_plan` does.
    """
    limits = [stage.hints.timeout_s for stage in read_plan(root, [target])]
    known = [limit for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None


def read_edges(root: Path) -> list[tuple[str, str]]:
    """Return DVC's edges (earlier stage, later stage), those from `*.dvc` files left out."""
    matches = (_EDGE.match(line) for line in run_dvc(root, "dag", "--dot").splitlines())
    edges = [(match["before"], match["after"]) for match in matches if match]
    return [edge for edge in edges if not edge[0].endswith(".dvc")]


def run_dvc(root: Path, *arguments: str) -> str:
    """Return what a short, reading DVC command prints to stdout; GraphError if it fails."""
    done = subprocess.run(
        [*DVC, *arguments],
        cwd=root,
        env=child_environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.strip().removeprefix("ERROR: ")
        raise GraphError(f"dvc {' '.join(arguments)}: {reason}")
    return done.stdout


def _read_hints(root: Path, names: Sequence[str]) -> dict[str, Hints]:
    found: dict[str, Hints] = {}
    problems: set[Problem] = set()
    documents: dict[str, Any] = {}
    for name in names:
        where, body = _stage_in_yaml(root, name, documents)
        raw = (body.get("meta") or {}).get("prefect") or {}
        wrong = _wrong_hints(f"{where}.meta.prefect", raw)
        problems.update(wrong)
        found[name] = Hints(**raw) if not wrong else Hints()
    if problems:
        raise GraphError("wrong hints for the flow", sorted(problems))
    return found


def _stage_in_yaml(root: Path, name: str, documents: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the place of a stage as messages name it, and its body; each file is read once."""
    file, _, stage = name.rpartition(":")
    file = file or "dvc.yaml"
    base = stage.partition("@")[0]  # one entry of a matrix or foreach is NAME@KEY
    if file not in documents:
        documents[file] = yaml.safe_load((root / file).read_text(encoding="utf-8"))
    body: dict[str, Any] = documents[file]["stages"][base]
    return f"{file}: stages.{base}", body.get("do", body)


def _wrong_hints(where: str, raw: object) -> list[Problem]:
    if not isinstance(raw, dict):
        return [
            Problem(where, f"got {raw!r}, expected a mapping", "Write {retries: 2} or the like")
        ]
    known = ", ".join(field.name for field in fields(Hints))
    wrong = [
        Problem(f"{where}.{key}", f"unknown hint, expected one of {known}", "Correct or remove it")
        for key in raw
        if key not in _HINT_CHECKS
    ]
    for key, (accepts, expected) in _HINT_CHECKS.items():
        if key in raw and not accepts(raw[key]):
            what = f"got {raw[key]!r}, expected {expected}"
            wrong.append(Problem(f"{where}.{key}", what, "Correct or remove it"))
    return wrong


_HINT_CHECKS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "retries": (lambda value: type(value) is int and value >= 0, "a whole number, 0 or more"),
    "timeout_s": (lambda value: type(value) in (int, float) and value > 0, "seconds above 0"),
}
