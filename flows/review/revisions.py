"""What git and DVC know of two revisions: parameters, metrics, shares and pictures.

A revision is a git name, or `None` for the working tree as it lies here.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from flows.graph import GraphError, run_dvc
from flows.repository import GitError, read_blob, run_git
from stages.contracts.errors import BlocklensError

SHARES: Final = "data/attribute/shares.csv"
_METRICS_FILE: Final = re.compile(r"data/(?P<stage>\w+)/metrics\.json")

Value = float | int | str | bool | None


class RevisionError(BlocklensError, ValueError):
    """A revision that git does not know, or that has no results to compare."""


@dataclass(frozen=True)
class Change:
    """A parameter or metric, `<section>.<key>`, in two revisions; None where it is not there."""

    name: str
    before: Value
    after: Value


def require_revision(root: Path, revision: str) -> str:
    """Return the short hash of a revision.

    Raises:
        RevisionError: git has no such commit, which in CI mostly means a shallow clone.
    """
    try:
        return run_git(root, "rev-parse", "--verify", "--short", f"{revision}^{{commit}}")
    except GitError as error:
        raise RevisionError(
            f"git knows no commit {revision!r}: name a branch, tag or hash that is here (in CI: "
            "check out with fetch-depth 0)"
        ) from error


def param_changes(root: Path, base: str, head: str | None) -> list[Change]:
    """Return every parameter that differs, by name."""
    return _changes(_diff(root, "params", base, head).get("params.yaml", {}))


def metric_changes(root: Path, base: str, head: str | None) -> list[Change]:
    """Return every metric of every stage, changed or not, by name."""
    changes = []
    for path, values in _diff(root, "metrics", base, head, "--all").items():
        if match := _METRICS_FILE.fullmatch(path):
            changes += _changes({f"{match['stage']}.{key}": v for key, v in values.items()})
    return sorted(changes, key=lambda change: change.name)


def read_shares(root: Path, revision: str | None) -> pd.Series[float] | None:
    """Return each block's share of the effect, largest first; None where none was measured."""
    content = read_file(root, revision, SHARES)
    if content is None:
        return None
    shares = pd.read_csv(io.BytesIO(content)).set_index("block")["share"]
    return shares.sort_values(ascending=False, kind="stable")


def read_file(root: Path, revision: str | None, path: str) -> bytes | None:
    """Return the bytes of a file in git, or in the working tree; None where it is not."""
    if revision is None:
        return (root / path).read_bytes() if (root / path).is_file() else None
    return read_blob(root, revision, path)


def fetch_output(root: Path, revision: str | None, path: str, target: Path) -> bool:
    """Put an output of the pipeline, as `revision` has it, at `target`; return whether it is there.

    It comes from DVC's cache, or from the remote where one is set up.
    """
    if revision is None:
        here = root / path
        if here.is_dir():
            shutil.copytree(here, target)
        elif here.is_file():
            shutil.copyfile(here, target)
        return here.exists()
    try:
        run_dvc(root, "get", "--quiet", ".", path, "--rev", revision, "--out", str(target))
    except GraphError:
        return False
    return True


def _diff(
    root: Path, kind: str, base: str, head: str | None, *options: str
) -> dict[str, dict[str, Any]]:
    revisions = [base] if head is None else [base, head]
    found: dict[str, dict[str, Any]] = json.loads(
        run_dvc(root, kind, "diff", "--json", *options, *revisions)
    )
    return found


def _changes(values: dict[str, dict[str, Any]]) -> list[Change]:
    return [Change(name, each["old"], each["new"]) for name, each in sorted(values.items())]
