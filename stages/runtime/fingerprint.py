"""Which run is this? A hash of all that decides a run's result.

State of an unfinished run is kept under this hash, so that a run with another seed, other data
or other code never goes on from it.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from stages.contracts.params.packages import packages_used
from stages.runtime.files import git_blob_hash, sha256_file

NUMERICAL_PACKAGES: Final = ("diffusers", "peft", "pytorch-optimizer", "torch", "transformers")
"""Installed packages whose version can change a weight."""

_ROOT: Final = Path(__file__).parents[2]
_EXEMPT: Final = ("stages.contracts", "stages.runtime")  # they decide neither pixels nor weights
_DIGITS: Final = 32


def package_versions(params: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the versions of the packages that compute the result, by name.

    Args:
        params: sections of params.yaml by their names; an optional package counts where one of
            their values asks for it, not because it is installed.
    """
    return {name: version(name) for name in (*NUMERICAL_PACKAGES, *packages_used(params))}


def run_fingerprint(
    params: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, str], stage: Path
) -> str:
    """Return 32 hexadecimal digits for a run of the stage file `stage`.

    Args:
        params: every value that the stage reads from params.yaml, by section and key.
        inputs: SHA-256 of every input, by a name that does not depend on the machine.
        stage: the stage's own file; all modules of ours that it imports count, too.
    """
    content = {
        "params": dict(params),
        "inputs": dict(inputs),
        "packages": package_versions(params),
        "code": {
            path.relative_to(_ROOT).as_posix(): sha256_file(path) for path in source_files(stage)
        },
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def source_hashes(stage: Path) -> dict[str, str]:
    """Return the git blob hash of `stage` and of each file that it imports, by its path."""
    return {path.relative_to(_ROOT).as_posix(): git_blob_hash(path) for path in source_files(stage)}


def source_files(stage: Path) -> tuple[Path, ...]:
    """Return `stage` and the files of ours that it imports, directly or not, sorted.

    contracts/ and runtime/ are left out, as in dvc.yaml.
    """
    found: set[Path] = set()
    waiting = [stage.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path)
    return tuple(sorted(found))


def _imports(path: Path) -> list[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = [
        _ROOT.joinpath(*name.split(".")).with_suffix(".py")
        for name in names
        if name.startswith("stages.") and not name.startswith(_EXEMPT)
    ]
    return [file for file in ours if file.is_file()]
