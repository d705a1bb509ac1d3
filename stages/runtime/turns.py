"""One process at a time for a stage of a checkout.

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


@contextmanager
def own_turn(stage: str) -> Iterator[None]:
    """Wait until no other process is at a stage with the same state (BLOCKLENS_STATE).

    By default that is the checkout in the working directory. Of several processes that a launcher
    started, the first waits for all.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        yield
        return
    path = Path(os.environ.get("BLOCKLENS_STATE", ".blocklens")) / f"{stage}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    # lockf(3) and not flock(2), whose lock children share that may outlive us.
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: another process is still at it in this folder: waiting", stage)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
