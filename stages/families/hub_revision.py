"""From the name of a branch to the commit that it stands for now, for a person to write down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import yaml

from stages.contracts.errors import ParamsError, Problem
from stages.families.hub_problems import FAILURES, token_problem
from stages.families.hub_session import bound_waiting

_REVISION: Final = "revision"


def explain_revisions(path: Path, error: ParamsError) -> ParamsError:
    """Return `error` with the commit hash in each problem with a branch, tag or short hash.

    Asks the Hub once per such revision. Where it does not answer, the problem stays as it is.

    Args:
        path: the params file that was refused.
        error: what is wrong with it; each problem's `where` ends in the dotted key.
    """
    if not any(problem.where.endswith(f".{_REVISION}") for problem in error.problems):
        return error
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return ParamsError(error.summary, [_explained(document, problem) for problem in error.problems])


def commit_of(repository: str, name: str) -> str | None:
    """Return the commit hash that a branch, tag or short hash stands for, or None if unknown."""
    if token_problem():
        return None
    bound_waiting()
    try:
        return huggingface_hub.HfApi().model_info(repository, revision=name).sha
    except (*FAILURES, ValueError):  # ValueError: a proxy that answers for the Hub, with a page
        return None


def _explained(document: object, problem: Problem) -> Problem:
    key = problem.where.rpartition(" ")[2]
    *sections, last = key.split(".")
    section = _section(document, sections)
    repository, name = section.get("repository"), section.get(_REVISION)
    if last != _REVISION or not isinstance(repository, str) or not isinstance(name, str):
        return problem
    commit = commit_of(repository, name)
    if commit is None or commit == name:
        return problem
    what = f"{name!r} is no commit hash of {repository}; it stands for {commit} now"
    return Problem(problem.where, what, f"Write {key}: {commit}.")


def _section(document: object, keys: list[str]) -> Mapping[str, Any]:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}
