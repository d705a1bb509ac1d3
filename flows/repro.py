"""What DVC made of one stage: Ran, Unchanged or FromRunCache. Imports no prefect.

A stage is run as the child process `dvc repro --single-item STAGE`, not through `dvc.repo.Repo`:
two Repo objects in one process were seen to run the same stage twice at once, and a child
process gives output, an exit code and something to stop.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from flows import processes
from flows.environment import child_environment
from flows.failure import failure_message, is_busy
from flows.graph import DVC
from flows.lock_file import locked_outputs
from stages.contracts.errors import BlocklensError

_ADVICE: Final = re.compile(
    r"\s*$|To track the changes with git|To enable auto staging|\tgit add |\tdvc config |"
    r"Use `dvc push`"
)
"""What DVC says after every stage, and nobody wants to read eleven times in a log."""

_BLOCKER: Final = re.compile(r"^\s+(?P<who>\(PID \d+\): .*)$")
"""dvc 3.67, dvc/rwlock.py: who blocks what, after `it is being blocked by:`."""

RWLOCK: Final = Path(".dvc", "tmp", "rwlock")
"""dvc 3.67, dvc/rwlock.py: by path, the processes that read it and the one that writes it."""

_PROGRAM: Final = re.compile(r"/dvc(?:/__main__\.py)?(?= |$)")

KEPT_BYTES: Final = 4 << 20
"""Outputs up to this size are kept aside during a run. Metrics are a few hundred bytes."""
CHECKOUT_TIMEOUT_S: Final = 600.0
SAID_EVERY_S: Final = 60.0
"""How often somebody who waits for a process to end says so."""
_log = logging.getLogger("flows.repro")


class StageFailedError(BlocklensError, RuntimeError):
    """A stage did not do its work; the message is the stage's own."""


class CheckoutInUseError(BlocklensError, RuntimeError):
    """Another flow or `dvc repro` runs in this checkout."""


class Outcome(StrEnum):
    """What a successful `dvc repro --single-item` did."""

    RAN = "Ran"
    UNCHANGED = "Unchanged"
    FROM_RUN_CACHE = "FromRunCache"


_OUTCOME_LINES: Final = (
    (re.compile(r"^Running stage '.+':$"), Outcome.RAN),
    (re.compile(r"^Stage '.+' didn't change, skipping$"), Outcome.UNCHANGED),
    (re.compile(r"^Stage '.+' is cached - skipping run"), Outcome.FROM_RUN_CACHE),
)
"""dvc 3.67: dvc/stage/run.py, dvc/stage/__init__.py, dvc/stage/cache.py."""


def run_stage(
    root: Path,
    stage: str,
    on_line: Callable[[str], None],
    *,
    force: bool = False,
    timeout_s: float | None = None,
) -> Outcome:
    """Reproduce one stage, give each line of its output to `on_line`, and return what happened.

    Raises StageFailedError with the stage's own message on failure, or when `timeout_s` is over.
    Whatever ends the stage early, DVC has deleted its outputs by then: those of the last good
    run are put back.
    """
    command = [*DVC, "repro", "--single-item", *(["--force"] if force else []), stage]
    kept = _keep_small_outputs(root, stage)
    try:
        finished = processes.run_streamed(
            command,
            directory=root,
            environment=child_environment(),
            on_line=lambda line: None if _ADVICE.match(line) else on_line(line),
            timeout_s=timeout_s,
        )
    except BaseException:
        _restore(root, stage, kept, on_line)
        raise
    if finished.exit_code == 0:
        return _outcome(finished.lines)
    if is_busy(finished.lines):  # it belongs to another dvc, and so do its outputs
        raise CheckoutInUseError(f"{stage}: {_in_use(root, '`dvc` is running', finished.lines)}")
    _restore(root, stage, kept, on_line)
    if finished.timed_out:
        raise StageFailedError(f"{stage}: stopped after {timeout_s:g} s, its timeout_s in dvc.yaml")
    raise StageFailedError(failure_message(stage, finished.lines))


@contextlib.contextmanager
def exclusive_run(root: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold this checkout for one flow.

    DVC's own locks refuse only the same stage at the same time: two flows would go through
    dvc.lock side by side. The lock is a flock(2), so it ends with the process. A `dvc` that is at
    a stage may take `patience_s` to end: that of a flow which was killed saves its state first.

    Raises:
        CheckoutInUseError: another flow holds it, or a `dvc repro` is at a stage.
    """
    path = root / ".blocklens" / "flow.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckoutInUseError(_in_use(root, "another flow is running")) from error
        if running := _outlast_dvc(root, patience_s):
            raise CheckoutInUseError(_in_use(root, f"{running} is running"))
        yield


def _in_use(root: Path, who: str, said: Sequence[str] = ()) -> str:
    """Return the refusal, with the process that DVC named, if it named one."""
    blockers = [match["who"] for line in said if (match := _BLOCKER.match(line))]
    if blockers:
        who = f"{blockers[0]} is running"
    return f"{root}: {who} in this checkout. Wait for it, stop it, or use a clone of your own"


def forget_dead_dvc(root: Path) -> None:
    """Remove DVC's notes of who locks what, unless one of these processes lives.

    DVC itself takes any process of the same number for it, and would refuse the stage for ever
    after a restart of the machine. Only for a checkout that is held, and nobody else's.
    """
    if not _living_dvc(root, "write") and not _living_dvc(root, "read"):
        (root / RWLOCK).unlink(missing_ok=True)


def _outlast_dvc(root: Path, patience_s: float) -> str:
    """Return the process that still holds DVC's lock on an output after so many seconds."""
    start = said = time.monotonic()
    while (running := _living_dvc(root, "write")) and time.monotonic() < start + patience_s:
        if said == start or time.monotonic() > said + SAID_EVERY_S:
            _log.warning("%s: waiting for %s to end", root, running)
            said = time.monotonic()
        time.sleep(0.5)
    return running


def _living_dvc(root: Path, mode: str) -> str:
    """Return a process that holds a DVC lock of a mode, in DVC's words; empty without one.

    DVC notes number and arguments in a file that outlives it, and the machine: a process that has
    the number by now has other arguments.
    """
    try:
        noted = json.loads((root / RWLOCK).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # never locked; or just being written
        return ""
    for owners in noted.get(mode, {}).values():
        for owner in owners if isinstance(owners, list) else [owners]:
            if _runs(owner["pid"], owner["cmd"]):
                return f"(PID {owner['pid']}): {owner['cmd']}"
    return ""


def _runs(process: int, command: str) -> bool:
    """Return whether a process has the arguments of `command`, which is a joined sys.argv.

    The program's own path, which may have spaces, is left out: the system knows `python -m dvc` by
    another name. Where nothing can be compared, a process of that number is taken for it.
    """
    if not Path("/proc/self/cmdline").exists():
        return _exists(process)
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # no such process, or it ended meanwhile
        return False
    running = line.rstrip("\0").replace("\0", " ")
    noted = [command[match.end() :] for match in _PROGRAM.finditer(command)] or [""]
    return bool(line) and any(running.endswith(arguments) for arguments in noted)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _outcome(lines: tuple[str, ...]) -> Outcome:
    for line in lines:
        for pattern, outcome in _OUTCOME_LINES:
            if pattern.match(line):
                return outcome
    return Outcome.RAN  # a long output pushed the line out of the lines kept


def _locked_outputs(root: Path, stage: str) -> list[Path]:
    """Return the outputs of the stage's last good run, from dvc.lock."""
    file, _, name = stage.rpartition(":")
    folder = root / Path(file).parent
    return [folder / out["path"] for out in locked_outputs(folder).get(name, [])]


def _keep_small_outputs(root: Path, stage: str) -> dict[Path, bytes]:
    """Return the bytes of small output files: those outside the cache have no other copy."""
    files = (path for path in _locked_outputs(root, stage) if path.is_file())
    return {path: path.read_bytes() for path in files if path.stat().st_size <= KEPT_BYTES}


def _restore(
    root: Path, stage: str, kept: dict[Path, bytes], on_line: Callable[[str], None]
) -> None:
    """Put back the outputs of the last good run, as far as the cache and `kept` have them."""
    if not _locked_outputs(root, stage):
        return
    for path, content in kept.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # it may be a link into the cache
            path.write_bytes(content)
    command = [*DVC, "--quiet", "checkout", "--force", stage]
    try:
        subprocess.run(
            command,
            cwd=root,
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=CHECKOUT_TIMEOUT_S,
            check=True,
        )
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", None) or error
        on_line(f"{stage}: its last good outputs could not be put back: {reason}")
    else:
        on_line(f"{stage}: the outputs of its last good run are back in place")
