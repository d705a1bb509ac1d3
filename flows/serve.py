"""Prefect's server and one worker on this machine, with the deployments of prefect.yaml.

    python -m flows.serve [--port 4200] [--clone .blocklens/worker] [--server URL]
                          [--experiments N] [--only-experiments]

Prints the address of the page, and runs until Ctrl-C or SIGTERM, which stop a running stage so
that it can go on later, then the worker, then the server. The database is in PREFECT_HOME
(.blocklens/prefect); everything listens on this machine alone. With --server there is a server
already, at an address such as http://server:4200/api: only the worker is started here. With
--experiments there are N workers more, which take the experiments of sweeps, N at once, each in a
clone of its own; with --only-experiments and --server nothing but those.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import flows.environment  # noqa: F401  sets what prefect reads while it is imported
from flows import processes
from flows.experiments.fan_out import POOL as EXPERIMENTS
from flows.gpus import driver_gpus
from flows.left_runs import end_left_runs
from flows.local_server import wait_until_healthy
from flows.registration import POOL, register
from flows.worker_clone import CLONE_VARIABLE, SOURCE_VARIABLE, update_clone, worker_name
from stages.contracts.errors import BlocklensError

HOST: Final = "127.0.0.1"
PORT: Final = 4200
CLONE: Final = Path(".blocklens/worker")
HEARTBEAT_S: Final = 60
SERVER_GRACE_S: Final = 60.0
WORKER_GRACE_S: Final = processes.STAGE_GRACE_S + processes.GUARD_GRACE_S + 60.0
"""Longer than a flow waits for its stage, which may have to save what took hours."""
_PREFECT: Final = (sys.executable, "-m", "prefect")
_WORKER: Final = (*_PREFECT, "worker", "start", "--type", "process", "--limit", "1", "--pool")
RESTARTS: Final = 10
"""How often a worker for experiments that ended by itself is started again."""
_LEASES: Final = "prefect.server.concurrency.lease_storage.filesystem"
_GPUS: Final = "CUDA_VISIBLE_DEVICES"
_log = logging.getLogger("flows.serve")  # run as a program, __name__ is another


class ServeError(BlocklensError, RuntimeError):
    """Server or worker did not start, or ended by themselves."""


@dataclass(frozen=True)
class Command:
    """A worker to start: its command line, environment, and log, None for our own output."""

    line: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path | None

    def start(self) -> AbstractContextManager[subprocess.Popen[str]]:
        """Return the process, running until the context ends."""
        return _running(self.line, self.environment, self.log, WORKER_GRACE_S)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal says otherwise."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--clone", type=Path, default=CLONE, help="the worker's own clone")
    parser.add_argument("--server", metavar="URL", help="the API of a server that runs already")
    said = "how many workers take experiments of sweeps; default: none"
    parser.add_argument("--experiments", type=int, default=0, metavar="N", help=said)
    parser.add_argument("--only-experiments", action="store_true", help="no worker for other runs")
    options = parser.parse_args(arguments)
    if options.only_experiments and (options.server is None or options.experiments < 1):
        parser.error("--only-experiments: needs --server URL and --experiments N")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("flows").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.server is None:
            serve(Path.cwd(), options.clone, options.port, options.experiments)
        else:
            main_worker = not options.only_experiments
            work(Path.cwd(), options.clone, options.server, options.experiments, main_worker)
    except BlocklensError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        _log.info("stopped")


def serve(source: Path, clone: Path, port: int, experiments: int = 0) -> None:
    """Start server and workers, register the deployments, and wait until one of them ends.

    Raises:
        ServeError: the port is taken, or server or worker fail.
        RegistrationError: Prefect refuses a pool or a deployment.
        ServerError: the server does not start.
        CloneError: a worker's clone would be in a place that holds something else.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after all were stopped.
    """
    _require_free(port)
    update_clone(str(source), str(clone))
    url = f"http://{HOST}:{port}/api"
    environment = serving_environment(source, clone, url) | {
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": _LEASES,
    }
    logs = Path(environment["PREFECT_HOME"])
    workers = {"worker": _worker(POOL, environment, logs / "worker.log")}
    workers |= experiment_workers(source, clone, url, experiments, logs)
    with _running([*_PREFECT, "server", "start"], environment, logs / "server.log") as server:
        wait_until_healthy(server, url, logs / "server.log")
        register(environment, source)
        end_left_runs(url, [each.environment[CLONE_VARIABLE] for each in workers.values()])
        with ExitStack() as stack:
            working = {name: stack.enter_context(each.start()) for name, each in workers.items()}
            _log.info("Prefect: http://%s:%d (Ctrl-C stops it)", HOST, port)
            _log.info("for its commands: export PREFECT_API_URL=%s DO_NOT_TRACK=1", url)
            _wait({"server": server, **working}, workers, stack, logs)


def work(
    source: Path, clone: Path, url: str, experiments: int = 0, main_worker: bool = True
) -> None:
    """Register the deployments at the API of a running server, and work for it.

    What the workers say goes to this process's own output, and the first answers at /health on the
    port that PREFECT_WORKER_WEBSERVER_PORT names, 8080 by default: a container's ways to be
    watched. Without `main_worker`, only experiments are taken, and nothing is registered: the
    server's own machine has done that.

    Raises:
        ServeError: a worker fails.
        RegistrationError: Prefect refuses a pool or a deployment.
        ServerError: the server does not answer.
        CloneError: a worker's clone would be in a place that holds something else.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the workers were stopped.
    """
    environment = serving_environment(source, clone, url)
    workers = {}
    if main_worker:
        update_clone(str(source), str(clone))
        register(environment, source)
        workers["worker"] = _worker(POOL, environment, None)
    workers |= experiment_workers(source, clone, url, experiments, None)
    first = next(iter(workers))
    workers[first] = replace(workers[first], line=(*workers[first].line, "--with-healthcheck"))
    end_left_runs(url, [each.environment[CLONE_VARIABLE] for each in workers.values()])
    with ExitStack() as stack:
        working = {name: stack.enter_context(each.start()) for name, each in workers.items()}
        _log.info("working for %s", url)
        _wait(working, workers, stack)


def experiment_workers(
    source: Path, clone: Path, url: str, count: int, logs: Path | None
) -> dict[str, Command]:
    """Return `count` workers of the pool for experiments by name, their clones made.

    Each worker gets one of the GPUs that CUDA_VISIBLE_DEVICES lists, in turn; where it is not set,
    of all that there are, unless the environment says how an experiment uses several.
    """
    workers = {}
    gpus = _gpus_to_share() if count else []
    for index in range(count):
        name, own = f"experiments-{index + 1}", Path(f"{clone}-{index + 1}")
        update_clone(str(source), str(own))
        environment = serving_environment(source, own, url)
        if gpus:
            environment[_GPUS] = gpus[index % len(gpus)]
        log = logs / f"{name}.log" if logs else None
        workers[name] = _worker(EXPERIMENTS, environment, log)
    return workers


def _gpus_to_share() -> list[str]:
    listed = os.environ.get(_GPUS)
    if listed is not None:
        return [gpu for gpu in listed.split(",") if gpu]
    chosen = ":" in os.environ.get("BLOCKLENS_DEVICE", "")
    several = any(os.environ.get(name) for name in ("BLOCKLENS_PROCESSES", "BLOCKLENS_DASK"))
    return [] if chosen or several else driver_gpus()


def _worker(pool: str, environment: Mapping[str, str], log: Path | None) -> Command:
    name = worker_name(environment[CLONE_VARIABLE])
    return Command((*_WORKER, pool, "--name", name), environment, log)


def serving_environment(source: Path, clone: Path, url: str) -> dict[str, str]:
    """Return the environment of a worker of the server at `url`, and of what registers there."""
    return {
        **os.environ,
        "PREFECT_API_URL": url,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        SOURCE_VARIABLE: str(source.resolve()),
        CLONE_VARIABLE: str(clone.resolve()),
    }


def _wait(
    running: dict[str, subprocess.Popen[str]],
    workers: Mapping[str, Command],
    stack: ExitStack,
    logs: Path | None = None,
) -> None:
    """Wait until a process ends; one that takes experiments is started again, RESTARTS times.

    In the end all workers are told at once, so that their grace times do not add up.
    """
    try:
        _watch(running, workers, stack, logs)
    finally:
        for name in workers:
            running[name].terminate()


def _watch(
    running: dict[str, subprocess.Popen[str]],
    workers: Mapping[str, Command],
    stack: ExitStack,
    logs: Path | None,
) -> None:
    left = dict.fromkeys((name for name in workers if name != "worker"), RESTARTS)
    while True:
        for name, process in running.items():
            if process.poll() is None:
                continue
            said = _ended(name, process, logs and logs / f"{name}.log")
            if left.get(name, 0) == 0:
                raise ServeError(said)
            left[name] -= 1
            _log.warning("%s\nIt is started again.", said)
            environment = workers[name].environment
            end_left_runs(environment["PREFECT_API_URL"], [environment[CLONE_VARIABLE]])
            running[name] = stack.enter_context(workers[name].start())
        time.sleep(0.5)


@contextmanager
def _running(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None = None,
    grace_s: float = SERVER_GRACE_S,
) -> Iterator[subprocess.Popen[str]]:
    """Run a command until the context ends; without a log it writes where this process does."""
    with ExitStack() as stack:
        output: dict[str, object] = {}
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output["stdout"] = stack.enter_context(log.open("w", encoding="utf-8"))
            output["stderr"] = subprocess.STDOUT
        process = processes.start_guarded(command, grace_s, env=dict(environment), **output)
    try:
        yield process
    finally:
        processes.stop(process, grace_s)


def _ended(name: str, process: subprocess.Popen[str], log: Path | None) -> str:
    said = f"Prefect's {name} ended with exit code {process.returncode}."
    if log is None:
        return said
    end = log.read_text(encoding="utf-8", errors="replace")[-2000:].strip()
    return f"{said} The end of {log}:\n{end}"


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServeError(
                f"port {port} is taken: stop what listens there, or name another with --port "
                f'(make serve SERVE="--port {port + 1}")'
            ) from error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
