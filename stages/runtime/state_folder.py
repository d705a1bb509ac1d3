"""Where a stage keeps what it has done so far, and one process at a time for it.

kill -9 of `dvc` ends its stage with SIGTERM, and the stage saves its state. A `dvc repro` that is
given at once would start another one beside it, which reads that state and writes the same output.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)


def state_root() -> Path:
    """Return the folder of everything that can go on after a kill: $BLOCKLENS_STATE."""
    return Path(os.environ.get("BLOCKLENS_STATE") or ".blocklens")


def run_folder(stage: str, fingerprint: str) -> Path:
    """Return the folder of this very run's state, and say so if other runs left theirs."""
    root = state_root() / stage
    folder = root / fingerprint
    if others := len(set(root.glob("*")) - {folder}):
        _log.info(
            "%d unfinished %s of other settings, data or code in %s: delete what you gave up",
            others,
            "run" if others == 1 else "runs",
            root,
        )
    return folder


@contextmanager
def own_turn(stage: str) -> Iterator[None]:
    """Wait until no other process is at a stage with the same state (BLOCKLENS_STATE).

    By default that is the checkout in the working directory. Of several processes that a launcher
    started, the first waits for all.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        yield
        return
    path = state_root() / f"{stage}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    # lockf(3) and not flock(2), whose lock children share that may outlive us.
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: another process is still at it in this folder: waiting", stage)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
