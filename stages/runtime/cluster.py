"""A Dask cluster as a crew (runtime/crew.py). Dask schedules; here is what is sent and checked.

A worker process keeps one session open and closes it before another one, and computes one item at
a time whatever its threads. An item whose worker dies is computed by another one.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import pickle
import platform
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import dask
from distributed import (
    Client,
    Future,
    KilledWorker,
    Nanny,
    Scheduler,
    SpecCluster,
    fire_and_forget,
    get_worker,
    wait,
)
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm.core import CommClosedError

from stages.contracts.errors import BlocklensError, ClusterError, Problem
from stages.runtime.crew import VARIABLE, Item, Result, Session, Setting
from stages.runtime.device import device_name
from stages.runtime.fingerprint import NUMERICAL_PACKAGES
from stages.runtime.gpu_lock import claim_gpus

_FORMS: Final = "Name a scheduler (tcp://host:port, tls://host:port) or local:N."
_LOCAL: Final = re.compile(r"local:([1-9]\d*)")
_CONNECT_S: Final = 20.0
"""How long to wait for the scheduler, and for its first worker."""
_WORKERLESS_S: Final = 120.0
"""How long to wait for another worker once all are gone: a nanny starts a dead one again."""
_POLL_S: Final = 5.0
_RETRIES: Final = 2
"""Of an item that raises what is not the input's fault; killed workers are counted by Dask."""
_STARTS: Final = 3
"""How often workers of this machine are started, if one dies meanwhile."""
_AHEAD: Final = 2
"""Items sent per worker: one is computed, one waits. Few, since an item may hold pictures."""
_QUIET: Final = {"distributed.admin.large-graph-warning-threshold": "1 GiB"}
_AS_HERE: Final[dict[str, dict[str, str]]] = {"distributed.nanny.pre-spawn-environ": {}}
"""Else Dask sets OMP_NUM_THREADS in this process too, for all that it starts later."""

_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)


@contextmanager
def open_cluster(place: str, setting: Setting[Session]) -> Iterator[Cluster[Session]]:
    """Yield the workers of the cluster at `place`, all of which can compute with `setting`.

    Raises:
        ClusterError: see `open_crew`.
    """
    logging.getLogger("distributed").setLevel(logging.ERROR)
    local = _LOCAL.fullmatch(place)
    if local is None and not place.startswith(("tcp://", "tls://")):
        raise _no_cluster(place, "is no address of a cluster", _FORMS)
    with dask.config.set(_QUIET), ExitStack() as stack:
        address: Any = place
        if local is not None:
            # Here, for all of them: they are this process's children and share what it holds.
            claim_gpus(device_name(), {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": local[1]})
            address = stack.enter_context(_local_cluster(int(local[1])))
        client = stack.enter_context(_connect(place, address, int(local[1]) if local else 1))
        workers = _require_fit(client, setting)
        _log.info("%s=%s: %d workers", VARIABLE, place, workers)
        key = hashlib.sha256(pickle.dumps(setting)).hexdigest()
        try:
            yield Cluster(client, setting, key)
        finally:
            if local is None:
                _dismiss(client, key)


def _local_cluster(count: int) -> SpecCluster:
    """Return a scheduler and `count` worker processes on loopback; closed with the context.

    LOCAL_RANK gives each its own GPU (runtime/device.py), where there is one. A nanny starts a
    dead worker again only once it has worked: where one dies before, all are started again.

    Raises:
        ClusterError: workers died while they started, again and again.
    """
    here = {"host": "127.0.0.1", "dashboard": False}
    workers = {
        rank: {
            "cls": Nanny,
            "options": {
                **here,
                "nthreads": 1,
                "silence_logs": logging.ERROR,
                "memory_limit": 0,  # a model is larger than the share that Dask would allow
                "env": {"LOCAL_RANK": str(rank)},
            },
        }
        for rank in range(count)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {**here, "port": 0, "dashboard_address": "127.0.0.1:0"},
    }
    for _ in range(_STARTS):
        try:
            with dask.config.set(_AS_HERE):
                return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)
        except RuntimeError as error:
            reason = error.__cause__ or error
            _log.warning("a worker died while it started (%s)", reason)
    what = f"a worker died while it started, {_STARTS} times"
    raise _no_cluster(f"local:{count}", what, "Is memory short? Name fewer workers.")


@contextmanager
def _connect(place: str, address: Any, workers: int) -> Iterator[Client]:
    """Yield a client of the scheduler, once it has `workers` workers."""
    try:
        client = Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:  # ValueError: no host or port in the address
        what = f"does not answer within {_CONNECT_S:g} s ({type(error).__name__})"
        raise _no_cluster(place, what, "Start it: docs/several-machines.md.") from error
    with client:
        try:
            client.wait_for_workers(workers, timeout=3 * _CONNECT_S if workers > 1 else _CONNECT_S)
        except TimeoutError as error:
            what = f"has {len(client.nthreads())} of {workers} workers"
            raise _no_cluster(place, what, "Start workers: docs/several-machines.md.") from error
        yield client


def _no_cluster(place: str, what: str, remedy: str) -> ClusterError:
    return ClusterError("There is no cluster", [Problem(f"{VARIABLE}={place}", what, remedy)])


def _require_fit(client: Client, setting: Setting[Any]) -> int:
    """Return the number of workers, once none of them lacks anything.

    Raises:
        ClusterError: other software, or what the setting's own check finds, on any worker.
    """
    answers = client.run(_problems_here, setting, software(), on_error="return")
    problems = []
    for worker, answer in answers.items():
        if isinstance(answer, BaseException):
            what = f"cannot run Blocklens: {type(answer).__name__}: {answer}"
            problems.append(Problem(worker, what, "Install the same version there."))
        else:
            problems += [Problem(f"{worker}, {one.where}", one.what, one.remedy) for one in answer]
    if problems:
        raise ClusterError("Workers are not fit for this run", problems)
    return len(answers)


def software() -> dict[str, str]:
    """Return what has to be the same in every process: versions, and a hash of our own code.

    Builds for other hardware (`2.13.0+cpu`) count as the same version.
    """
    packages = {
        name: version(name).partition("+")[0] for name in ("distributed", *NUMERICAL_PACKAGES)
    }
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **packages, "blocklens": _code_hash()}


def _code_hash() -> str:
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _problems_here(setting: Setting[Any], expected: Mapping[str, str]) -> list[Problem]:
    """Return what keeps this process from computing as the driver would."""
    found = software()
    problems = [
        Problem(name, f"{found[name]}, the driver has {value}", "Install the same version there.")
        for name, value in expected.items()
        if found[name] != value
    ]
    return problems or setting.find_problems(setting.description)


@dataclass
class Cluster(Generic[Session]):
    """The workers of a Dask cluster."""

    client: Client
    setting: Setting[Session]
    key: str

    def each(
        self, function: Callable[[Session, Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        """Yield as `Crew.each` does; few items are under way at a time."""
        with _told():
            yield from self._each(function, items)

    def _each(
        self, function: Callable[[Session, Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        expected = software()
        waiting = enumerate(items)
        sent: dict[Future[bytes | _Refusal], int] = {}
        while True:
            free = _AHEAD * max(1, len(self.client.nthreads())) - len(sent)
            for index, item in islice(waiting, max(0, free)):
                task = pickle.dumps((self.setting, function, item))
                future = self.client.submit(
                    _compute, self.key, expected, task, retries=_RETRIES, pure=False
                )
                sent[future] = index
            if not sent:
                return
            for future in self._finished([*sent]):
                result = self._patiently(partial(future.result, timeout=_POLL_S))
                if isinstance(result, _Refusal):
                    raise result.as_error()
                yield sent.pop(future), pickle.loads(result)

    def _finished(self, futures: list[Future[Any]]) -> list[Future[Any]]:
        done = self._patiently(
            lambda: wait(futures, timeout=_POLL_S, return_when="FIRST_COMPLETED").done
        )
        return [future for future in futures if future in done]

    def _patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """Return what `ask` returns, which times out again and again, while there are workers."""
        alone_since: float | None = None
        while True:
            try:
                return ask()
            except TimeoutError:
                if self.client.nthreads():
                    alone_since = None
                    continue
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since < _WORKERLESS_S:
                    continue
                raise _stopped(f"no worker for {_WORKERLESS_S:g} s", "Start workers.") from None


@contextmanager
def _told() -> Iterator[None]:
    """Say in our words what Dask raises when it cannot go on."""
    try:
        yield
    except KilledWorker as error:
        what = f"an item killed its worker again and again, last {error.last_worker.address}"
        raise _stopped(what, "Look at the workers' logs: is memory short?") from error
    except (FutureCancelledError, ClosedClientError, CommClosedError, OSError) as error:
        what = f"the scheduler is gone ({type(error).__name__})"
        raise _stopped(what, "Start it and its workers.") from error


def _stopped(what: str, remedy: str) -> ClusterError:
    problem = Problem(VARIABLE, what, f"{remedy} Then run `dvc repro` to go on.")
    return ClusterError("The cluster stopped working", [problem])


@dataclass(frozen=True)
class _Refusal:
    """An error that is the input's fault: to be told, not to be tried again."""

    worker: str
    error: BlocklensError

    def as_error(self) -> BlocklensError:
        return type(self.error)(f"{self.error.summary} (worker {self.worker})", self.error.problems)


@dataclass
class _Held:
    """The session that this worker process has open, by its setting's key."""

    lock: threading.Lock
    stack: ExitStack
    key: str | None = None
    session: Any = None


_held: Final = _Held(threading.Lock(), ExitStack())


def _compute(key: str, expected: Mapping[str, str], task: bytes) -> bytes | _Refusal:
    """Return an item's result, pickled: Dask's own way with tensors gives read-only ones."""
    setting, function, item = pickle.loads(task)
    with _held.lock:
        healthy = False
        try:
            result = pickle.dumps(function(_enter(key, setting, expected), item))
            healthy = True
            return result
        except BlocklensError as error:
            return _Refusal(get_worker().address, error)
        finally:
            if not healthy:
                _leave()


def _enter(key: str, setting: Setting[Any], expected: Mapping[str, str]) -> Any:
    """Return the open session of a setting; a worker that came late is checked here."""
    if _held.key != key:
        _leave()
        if problems := _problems_here(setting, expected):
            raise ClusterError("A worker is not fit for this run", problems)
        _held.session = _held.stack.enter_context(setting.open_session(setting.description))
        _held.key = key
    return _held.session


def _leave() -> None:
    _held.key = _held.session = None
    _held.stack.close()


atexit.register(_leave)  # while what closing needs can still be imported


def _leave_if(key: str) -> None:
    with _held.lock:
        if _held.key == key:
            _leave()


def _dismiss(client: Client, key: str) -> None:
    """Have every worker close the session, after the item that it may be at: it holds a GPU."""
    if client.status != "running":
        return
    for worker in client.nthreads():
        fire_and_forget(client.submit(_leave_if, key, workers=[worker], pure=False))
