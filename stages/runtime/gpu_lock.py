"""One job per GPU on a machine: a file lock that a process holds until it ends.

Two trainings on one GPU run out of memory, or each takes more than twice as long. So whoever uses
a GPU first waits for the one before. The lock is a flock(2): it ends with its process, however
that ends. Processes that a holder starts (data workers, a local cluster) share its GPUs.

BLOCKLENS_LOCKS      folder of the locks; default: blocklens-locks in the temporary folder. For
                     several containers on one machine, a folder that all of them mount
BLOCKLENS_GPUS_HELD  set here, for the processes that this one starts
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from stages.contracts.errors import HardwareError, Problem

_FOLDER: Final = "BLOCKLENS_LOCKS"
_HELD: Final = "BLOCKLENS_GPUS_HELD"
_EVERYONE: Final = 0o666
_EVERYONES_FOLDER: Final = 0o1777
_SHOWN_CHARACTERS: Final = 200

_log = logging.getLogger(__name__)
_open_locks: list[int] = []


def claim_gpus(name: str, environment: Mapping[str, str]) -> None:
    """Wait until the GPUs of this process are free, and hold them until it ends.

    Args:
        name: device as in BLOCKLENS_DEVICE; nothing happens where it is no CUDA device here.
        environment: tells which process of several this is (LOCAL_RANK, LOCAL_WORLD_SIZE).
    """
    if not name.startswith("cuda") or not torch.cuda.is_available():
        return
    indices = [each for each in gpu_indices(name, environment) if each < torch.cuda.device_count()]
    claim([str(torch.cuda.get_device_properties(index).uuid) for index in indices])


def gpu_indices(name: str, environment: Mapping[str, str]) -> list[int]:
    """Return the GPUs that this process has to claim, as CUDA numbers them.

    Of several processes that a launcher started on a machine, the first claims the GPUs of all:
    each for itself, two such runs could wait for each other for ever.
    """
    _, _, index = name.partition(":")
    if index:
        return [int(index)]
    if "LOCAL_RANK" not in environment:
        return [0]
    if int(environment["LOCAL_RANK"]) > 0:
        return []
    return list(range(int(environment.get("LOCAL_WORLD_SIZE", "1"))))


def claim(gpus: Sequence[str]) -> None:
    """Wait until nobody else holds `gpus`, named so that the whole machine knows them by it.

    The order of the names is the same for everybody, so that two who want the same ones never
    wait for each other.

    Raises:
        HardwareError: the lock's file cannot be made or locked.
    """
    held = set(filter(None, os.environ.get(_HELD, "").split(",")))
    for gpu in sorted(set(gpus) - held):
        path = _lock_folder() / f"{gpu}.lock"
        try:
            _make_for_everyone(path.parent)
            _open_locks.append(_locked(path, gpu))
        except OSError as error:
            remedy = f"Set {_FOLDER} to a folder that you may write to."
            problem = Problem(str(path), f"cannot be locked: {error.strerror}", remedy)
            raise HardwareError("One job at a time uses a GPU", [problem]) from error
        held.add(gpu)
    os.environ[_HELD] = ",".join(sorted(held))


def _locked(path: Path, gpu: str) -> int:
    """Return the descriptor of a lock that this process holds now."""
    lock = _opened(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.info("GPU %s is in use by %s: waiting for it to end", gpu, _holder(lock))
        fcntl.flock(lock, fcntl.LOCK_EX)
        _log.info("GPU %s is free", gpu)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} ({Path(sys.argv[0]).stem})".encode(), 0)
    return lock


def _opened(path: Path) -> int:
    """Return a descriptor of a file that every account of the machine may lock."""
    try:
        # Without O_CREAT: with it, Linux refuses another account's file in a shared folder
        # (fs.protected_regular).
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        pass
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _EVERYONE)
    except FileExistsError:  # another process was faster
        return _opened(path)
    os.fchmod(lock, _EVERYONE)  # whatever the umask takes away
    return lock


def _holder(lock: int) -> str:
    said = os.pread(lock, _SHOWN_CHARACTERS, 0).decode(errors="replace")
    return said or "another process"


def _lock_folder() -> Path:
    default = Path(tempfile.gettempdir()) / "blocklens-locks"
    return Path(os.environ.get(_FOLDER, default))


def _make_for_everyone(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(_EVERYONES_FOLDER)
