"""The worker's own clone: deployments run what is committed, never a person's working tree.

A run writes dvc.lock and metrics into its checkout. In the clone they are in nobody's way; DVC's
cache is shared with the source, so that nothing is made or fetched twice.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Final

from flows.graph import run_dvc
from flows.processes import GUARD_GRACE_S, STAGE_GRACE_S
from flows.repository import GitError, run_git
from flows.repro import exclusive_run, forget_dead_dvc
from stages.contracts.errors import BlocklensError

SETTINGS: Final = Path(".dvc", "config.local")
SOURCE_VARIABLE: Final = "BLOCKLENS_SOURCE"
CLONE_VARIABLE: Final = "BLOCKLENS_CLONE"
WORKER_NAME: Final = Path(".blocklens", "worker-name")
PATIENCE_S: Final = STAGE_GRACE_S + GUARD_GRACE_S
"""How long a stage may go on saving in the clone when its run has been cancelled."""

_FOLDER_REMOTE: Final = re.compile(r"(?P<option>remote\..+\.url)=(?P<path>/.*)")
"""dvc 3.67 lists a folder by its absolute path, however it was named."""


class CloneError(BlocklensError, RuntimeError):
    """The worker's clone would be in a place that holds something else."""


def update_clone(source: str, clone: str, revision: str = "HEAD") -> dict[str, str]:
    """Bring `clone` to the commit that `revision` names in `source`; return its directory.

    It is made where it is missing. Changes that an earlier run left in tracked files are undone,
    outputs are those of that commit as far as the cache has them; resumable state stays. A stage
    that still saves is waited for: Prefect kills a cancelled run after 30 s, and takes the next.

    Where `source` lacks the commit, it fetches from its own remotes once: a run of another machine
    may be about a newer commit.

    Raises:
        CloneError: `clone` is something else than a clone of `source`.
        GitError: git fails, as it does where it knows no such revision.
        CheckoutInUseError: another run is going on in the clone, or a stage does not end.
    """
    origin, folder = Path(source).resolve(), Path(clone).resolve()
    if not (folder / ".git").exists():
        if folder.exists() and any(folder.iterdir()):
            raise CloneError(f"{folder} is no clone of {origin} and is not empty: name another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_git(origin, "clone", "--quiet", "--no-checkout", str(origin), str(folder))
    found = run_git(folder, "remote", "get-url", "origin")
    if Path(found).resolve() != origin:
        raise CloneError(f"{folder} is a clone of {found}, not of {origin}: name another folder")
    with exclusive_run(folder, PATIENCE_S):
        forget_dead_dvc(folder)
        commit = _commit(origin, revision)
        run_git(folder, "fetch", "--quiet", "--tags", "--force", "origin", commit)
        run_git(folder, "checkout", "--quiet", "--detach", "--force", commit)
        _take_settings(origin, folder)
        run_dvc(folder, "checkout", "--quiet", "--force", "--allow-missing")
    return {"directory": str(folder)}


def update_own_clone(revision: str = "HEAD") -> dict[str, str]:
    """Do the same for the clone that the environment of this worker names.

    So workers of one pool, on this machine and on others, have each a clone of their own. This is
    the pull step of prefect.yaml, run before the flow.

    Raises:
        CloneError: the environment names none: the worker was not started by flows.serve.
    """
    missing = [name for name in (SOURCE_VARIABLE, CLONE_VARIABLE) if name not in os.environ]
    if missing:
        said = " and ".join(missing)
        raise CloneError(f"{said} not set: start the worker with python -m flows.serve")
    return update_clone(os.environ[SOURCE_VARIABLE], os.environ[CLONE_VARIABLE], revision)


def worker_name(clone: str | Path) -> str:
    """Return the name that Prefect knows the worker of a clone by.

    It is kept in the clone, so that the worker's runs can be told from others' when it is started
    again, in a new container too, and no other machine has it.
    """
    path = Path(clone) / WORKER_NAME
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"worker-{uuid.uuid4().hex[:12]}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _commit(origin: Path, revision: str) -> str:
    try:
        return run_git(origin, "rev-parse", f"{revision}^{{commit}}")
    except GitError:
        if not run_git(origin, "remote"):
            raise
    run_git(origin, "fetch", "--quiet", "--all")
    return run_git(origin, "rev-parse", f"{revision}^{{commit}}")


def _take_settings(origin: Path, folder: Path) -> None:
    """Give the clone what git does not: the source's local settings, its cache, folder remotes.

    Local settings may hold the key of a remote. A remote that is a folder has a path from the
    settings of the checkout, which would lead elsewhere from the clone's.
    """
    (folder / SETTINGS).unlink(missing_ok=True)
    if (origin / SETTINGS).is_file():
        shutil.copy(origin / SETTINGS, folder / SETTINGS)  # with its mode: it may have secrets
    run_dvc(folder, "config", "--local", "cache.dir", _cache(origin))
    for line in run_dvc(origin, "config", "--list").splitlines():
        if match := _FOLDER_REMOTE.fullmatch(line):
            run_dvc(folder, "config", "--local", match["option"], match["path"])


def _cache(origin: Path) -> str:
    """Return the folder of the source's DVC cache, wherever its settings put it."""
    return run_dvc(origin, "cache", "dir").strip()
