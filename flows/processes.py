"""Child processes of a flow: started under the guard, streamed, and stopped without a trace.

The registry of live processes is a module of its own, and not in the flow's file, because
`flow.serve` pickles the flow by value: a registry beside it would be copied and found empty.
"""

from __future__ import annotations

import collections
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from stages.contracts.stopping import SAVING_S

GUARD: Final = Path(__file__).with_name("guard.py")
INTERRUPT_GRACE_S: Final = 20.0
"""How long a process has to end after SIGINT, before SIGTERM."""
STAGE_GRACE_S: Final = SAVING_S + 30.0
"""The same for a stage: longer than its own launcher gives its processes to save their state."""
GUARD_GRACE_S: Final = 10.0
"""How much longer than its own ladder a guard may take before it is killed."""
KEPT_LINES: Final = 1000
"""A finished process keeps this many last lines of its output."""

_log = logging.getLogger(__name__)
_live: dict[int, subprocess.Popen[str]] = {}
_lock = threading.Lock()
_stopping = threading.Event()


class StoppedError(RuntimeError):
    """A process was asked for after `stop_all`."""


@dataclass(frozen=True)
class Finished:
    """How a process ended: exit code (128 + N for signal N), last lines, and whether in time."""

    exit_code: int
    lines: tuple[str, ...]
    timed_out: bool


def guarded(command: Sequence[str], grace_s: float) -> list[str]:
    """Return the command line that runs `command` under the guard, as a child of this process."""
    return [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), str(grace_s), *command]


def start_guarded(
    command: Sequence[str], grace_s: float = INTERRUPT_GRACE_S, **options: Any
) -> subprocess.Popen[str]:
    """Return a started process under the guard, in a session of its own; `options` as for Popen.

    The new session keeps a terminal's Ctrl-C away from it: we decide when it stops. The thread
    that starts it must wait for it, for the guard takes the end of that thread for our death.
    """
    return subprocess.Popen(
        guarded(command, grace_s),
        text=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )


def run_streamed(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    timeout_s: float | None = None,
) -> Finished:
    """Run a command, give each line of stdout and stderr to `on_line`, and return how it ended.

    Any exception, Ctrl-C and cancellation included, stops the command before it leaves here.
    Raises StoppedError, and starts nothing, after `stop_all`.
    """
    if _stopping.is_set():
        raise StoppedError("the run is being stopped: nothing new is started")
    process = start_guarded(
        command,
        STAGE_GRACE_S,
        cwd=directory,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with _lock:
        _live[process.pid] = process
    try:
        return _follow(process, on_line, timeout_s)
    except BaseException:
        for line in stop(process, STAGE_GRACE_S):
            on_line(line)
        raise
    finally:
        with _lock:
            del _live[process.pid]


def stop_all() -> None:
    """Stop every live process, and let `run_streamed` start none until `allow_starts`."""
    _stopping.set()
    with _lock:
        processes = list(_live.values())
    for process in processes:
        process.terminate()  # all ladders at once, then wait for each
    for process in processes:
        _wait_or_kill(process, STAGE_GRACE_S)


def allow_starts() -> None:
    """Take back `stop_all` at the start of a new run."""
    _stopping.clear()


def is_stopping() -> bool:
    """Return whether `stop_all` was called: nothing may be retried then."""
    return _stopping.is_set()


def stop(process: subprocess.Popen[str], grace_s: float = INTERRUPT_GRACE_S) -> list[str]:
    """Stop a guarded process and return the lines that it still wrote.

    They are read while we wait: a stage blocked on a full pipe could not save its state.
    """
    rest: list[str] = []
    process.terminate()
    if process.stdout is not None:
        reader = threading.Thread(target=_read_rest, args=(process.stdout, rest), daemon=True)
        reader.start()
        _wait_or_kill(process, grace_s)
        reader.join(timeout=1.0)
    else:
        _wait_or_kill(process, grace_s)
    return list(rest)


def _follow(
    process: subprocess.Popen[str], on_line: Callable[[str], None], timeout_s: float | None
) -> Finished:
    assert process.stdout is not None
    lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    overdue = threading.Event()

    def expire() -> None:
        overdue.set()
        process.terminate()

    timer = threading.Timer(timeout_s, expire) if timeout_s is not None else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            on_line(lines[-1])
        exit_code = process.wait()
    finally:
        if timer:
            timer.cancel()
    return Finished(exit_code, tuple(lines), overdue.is_set())


def _read_rest(stream: IO[str], lines: list[str]) -> None:
    lines.extend(line.rstrip("\n") for line in stream)


def _wait_or_kill(process: subprocess.Popen[str], grace_s: float = INTERRUPT_GRACE_S) -> None:
    try:
        process.wait(timeout=grace_s + GUARD_GRACE_S)
    except subprocess.TimeoutExpired:
        _log.warning("guard %d does not end: killing it", process.pid)
        process.kill()
        process.wait()
