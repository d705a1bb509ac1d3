"""Exit code of a command whose whole process group ends with it, with us, or with our parent.

    python guard.py PARENT_PID GRACE_S COMMAND...

Needed because nobody else stops a stage's processes: SIGTERM or SIGKILL to `dvc` leaves the
stage, and the GPU, running; SIGINT to `dvc` alone is ignored while a stage runs; and kill -9 of
a flow leaves all of it. So each child of a flow runs under this guard, in a process group of its
own, and the guard stops the group when it gets SIGTERM or when its parent dies (prctl(2),
PR_SET_PDEATHSIG; Linux only). It takes SIGINT first, since on that DVC gives back its locks and
a stage keeps its resumable state, then SIGTERM, then SIGKILL.

A descendant in a group of its own, as Prefect's worker gives each run, would outlive the command:
the guard inherits it (PR_SET_CHILD_SUBREAPER), and stops it with SIGTERM, then SIGKILL.

Standard library only, and run as a file: it must start in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_WATCHED = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM}
_POLL_S = 0.05
_TERMINATE_GRACE_S = 5.0
_PARENT_DIED = 128 + signal.SIGTERM


def main() -> int:
    """Run the command of `sys.argv` and return its exit code, 128 + N where signal N ended it."""
    parent_pid, grace_s, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    # A blocked SIGCHLD with the default action may be discarded, so that sigwait misses it.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _die_with_parent(signal.SIGTERM)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent_pid:
        return _PARENT_DIED
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_prepare_child
    )
    while child.poll() is None:
        if signal.sigwait(_WATCHED) == signal.SIGTERM:
            _stop_group(child, grace_s)
    _signal_group(child.pid, signal.SIGKILL)  # what the command left behind
    _stop_inherited(grace_s)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _die_with_parent(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _prepare_child() -> None:
    # Shells start background jobs with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    _die_with_parent(signal.SIGKILL)


def _stop_group(child: subprocess.Popen[bytes], grace_s: float) -> None:
    for number, patience_s in ((signal.SIGINT, grace_s), (signal.SIGTERM, _TERMINATE_GRACE_S)):
        _signal_group(child.pid, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if child.poll() is not None:
                return
            time.sleep(_POLL_S)
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()


def _stop_inherited(grace_s: float) -> None:
    """End all that is left of the command's descendants, and theirs as they fall to us."""
    told: set[int] = set()
    deadline = time.monotonic() + grace_s
    while left := _children():
        late = time.monotonic() > deadline
        for process in left if late else left - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
        told |= left
        time.sleep(_POLL_S)


def _children() -> set[int]:
    """Return this process's children; those that ended are waited for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    path = f"/proc/self/task/{os.getpid()}/children"
    try:
        with open(path, encoding="ascii") as file:
            return {int(process) for process in file.read().split()}
    except FileNotFoundError:  # no Linux, or one without CONFIG_PROC_CHILDREN
        return set()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
