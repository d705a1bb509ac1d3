"""The worker's own clone: deployments run what is committed, never a person's working tree.

A run writes dvc.lock and metrics into its checkout. In the clone they are in nobody's way; DVC's
cache is shared with the source, so that nothing is made or fetched twice.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from flows.graph import run_dvc
from flows.repro import exclusive_run
from stages.contracts.errors import BlocklensError

CACHE: Final = ".dvc/cache"


class CloneError(BlocklensError, RuntimeError):
    """The worker's clone cannot be made or brought up to date."""


def update_clone(source: str, clone: str, revision: str = "HEAD") -> dict[str, str]:
    """Bring `clone` to the commit that `revision` names in `source`; return its directory.

    It is made where it is missing. Changes that an earlier run left in tracked files are undone,
    outputs are those of that commit as far as the cache has them; resumable state stays. This is a
    pull step of prefect.yaml, run before the flow.

    Raises:
        CloneError: git fails, or `clone` is something else than a clone of `source`.
        CheckoutInUseError: another run is going on in the clone.
    """
    origin, folder = Path(source).resolve(), Path(clone).resolve()
    if not (folder / ".git").exists():
        if folder.exists() and any(folder.iterdir()):
            raise CloneError(f"{folder} is no clone of {origin} and is not empty: name another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git(origin, "clone", "--quiet", "--no-checkout", str(origin), str(folder))
    found = _git(folder, "remote", "get-url", "origin")
    if Path(found).resolve() != origin:
        raise CloneError(f"{folder} is a clone of {found}, not of {origin}: name another folder")
    with exclusive_run(folder):
        commit = _git(origin, "rev-parse", f"{revision}^{{commit}}")
        _git(folder, "fetch", "--quiet", "--tags", "--force", "origin", commit)
        _git(folder, "checkout", "--quiet", "--detach", "--force", commit)
        run_dvc(folder, "config", "--local", "cache.dir", _cache(origin))
        run_dvc(folder, "checkout", "--quiet", "--force", "--allow-missing")
    return {"directory": str(folder)}


def _cache(origin: Path) -> str:
    """Return the folder of the source's DVC cache, wherever its settings put it."""
    return run_dvc(origin, "cache", "dir").strip()


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        raise CloneError(f"git {' '.join(arguments)} in {root}: {done.stderr.strip()}")
    return done.stdout.strip()
