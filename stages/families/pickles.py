"""Pickled weights are refused: reading them can run any program."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

import huggingface_hub
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from huggingface_hub.hf_api import RepoFile

from stages.contracts.errors import Problem
from stages.families.hub_problems import FAILURES

_SUFFIXES: Final = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
_WHAT: Final = "pickled weights, which can run any program when they are read"


def is_pickle(name: str) -> bool:
    """Return whether a file is named like pickled weights."""
    return PurePosixPath(name).suffix.lower() in _SUFFIXES


def pickle_problem(path: str) -> Problem:
    """Return the refusal of a pickle that lies here."""
    return Problem(path, _WHAT, "Move it away, and put a .safetensors file in its place.")


def hub_pickle_problems(repository: str, revision: str) -> list[Problem]:
    """Return the refusal of each pickle in a repository; none where it cannot be listed."""
    remedy = "It was not downloaded; choose a repository or revision with .safetensors files."
    return [
        Problem(f"{repository}/{path}", _WHAT, remedy)
        for path in _listing(repository, revision)
        if is_pickle(path)
    ]


def _listing(repository: str, revision: str) -> list[str]:
    try:
        # What the download before this one left, so that nobody is asked twice.
        tree = huggingface_hub.get_cached_repo_tree(repository, revision=revision)
        return sorted(file.path for file in tree)
    except CachedRepoTreeNotFoundError:
        pass
    try:
        entries = huggingface_hub.HfApi().list_repo_tree(
            repository, recursive=True, revision=revision
        )
        return sorted(entry.path for entry in entries if isinstance(entry, RepoFile))
    except FAILURES:
        return []
