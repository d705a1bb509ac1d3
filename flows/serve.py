"""Prefect's server and one worker on this machine, with the deployments of prefect.yaml.

    python -m flows.serve [--port 4200] [--clone .blocklens/worker] [--server URL]

Prints the address of the page, and runs until Ctrl-C or SIGTERM, which stop a running stage so
that it can go on later, then the worker, then the server. The database is in PREFECT_HOME
(.blocklens/prefect); everything listens on this machine alone. With --server there is a server
already, at an address such as http://server:4200/api: only the worker is started here.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import processes
from flows.left_runs import end_left_runs
from flows.local_server import wait_until_healthy
from flows.worker_clone import update_clone
from stages.contracts.errors import BlocklensError

HOST: Final = "127.0.0.1"
PORT: Final = 4200
POOL: Final = "blocklens"
CLONE: Final = Path(".blocklens/worker")
ZOMBIES: Final = "Runs without a heartbeat are crashed"
HEARTBEAT_S: Final = 60
DEAD_AFTER_S: Final = 300
SERVER_GRACE_S: Final = 60.0
WORKER_GRACE_S: Final = processes.STAGE_GRACE_S + processes.GUARD_GRACE_S + 60.0
"""Longer than a flow waits for its stage, which may have to save what took hours."""
_PREFECT: Final = (sys.executable, "-m", "prefect")
_WORKER: Final = (*_PREFECT, "worker", "start", "--pool", POOL, "--limit", "1")
_LEASES: Final = "prefect.server.concurrency.lease_storage.filesystem"
_log = logging.getLogger("flows.serve")  # run as a program, __name__ is another


class ServeError(BlocklensError, RuntimeError):
    """Server or worker did not start, or ended by themselves."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal says otherwise."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--clone", type=Path, default=CLONE, help="the worker's own clone")
    parser.add_argument("--server", metavar="URL", help="the API of a server that runs already")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("flows").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.server is None:
            serve(Path.cwd(), options.clone, options.port)
        else:
            work(Path.cwd(), options.clone, options.server)
    except BlocklensError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        _log.info("stopped")


def serve(source: Path, clone: Path, port: int) -> None:
    """Start server and worker, register the deployments, and wait until one of the two ends.

    Raises:
        ServeError: the port is taken, or registration, server or worker fail.
        ServerError: the server does not start.
        CloneError: the worker's clone would be in a place that holds something else.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after both were stopped.
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
    with _running([*_PREFECT, "server", "start"], environment, logs / "server.log") as server:
        wait_until_healthy(server, url, logs / "server.log")
        _register(environment, source)
        with temporary_settings({PREFECT_API_URL: url}):
            asyncio.run(end_left_runs(POOL))
        with _running(_WORKER, environment, logs / "worker.log", WORKER_GRACE_S) as working:
            _log.info("Prefect: http://%s:%d (Ctrl-C stops it)", HOST, port)
            _wait({"server": server, "worker": working}, logs)


def work(source: Path, clone: Path, url: str) -> None:
    """Register the deployments at the API of a running server, and work for it.

    What the worker says goes to this process's own output, and it answers at /health on the port
    that PREFECT_WORKER_WEBSERVER_PORT names, 8080 by default: a container's ways to be watched.

    Raises:
        ServeError: registration or worker fail.
        CloneError: the worker's clone would be in a place that holds something else.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the worker was stopped.
    """
    update_clone(str(source), str(clone))
    environment = serving_environment(source, clone, url)
    _register(environment, source)
    command = [*_WORKER, "--with-healthcheck"]
    with _running(command, environment, grace_s=WORKER_GRACE_S) as working:
        _log.info("working for %s", url)
        _wait({"worker": working})


def serving_environment(source: Path, clone: Path, url: str) -> dict[str, str]:
    """Return the environment of a worker of the server at `url`, and of what registers there."""
    return {
        **os.environ,
        "PREFECT_API_URL": url,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        "BLOCKLENS_SOURCE": str(source.resolve()),
        "BLOCKLENS_CLONE": str(clone.resolve()),
    }


def crash_zombies() -> Automation:
    """Return the automation that ends runs whose process died without a word.

    Source: docs.prefect.io/v3/advanced/detect-zombie-flows.
    """
    ends = {
        f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")
    }
    return Automation(
        name=ZOMBIES,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=DEAD_AFTER_S),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"No sign of life for {DEAD_AFTER_S} s: its process or machine died. "
                "Start it again, it goes on where it was.",
            )
        ],
    )


def _register(environment: Mapping[str, str], source: Path) -> None:
    """Make the pool (again), the deployments and the automation."""
    commands = (
        ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
        ["work-pool", "set-concurrency-limit", POOL, "1"],
        ["--no-prompt", "deploy", "--all"],
    )
    for command in commands:
        done = subprocess.run(
            [*_PREFECT, *command],
            cwd=source,
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr + done.stdout).strip()
            raise ServeError(f"prefect {' '.join(command)} failed: {said}")
    with temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}):
        asyncio.run(_register_automation())


async def _register_automation() -> None:
    try:
        await Automation.aread(name=ZOMBIES)
    except (ValueError, ObjectNotFound):
        await crash_zombies().acreate()


def _wait(processes_by_name: Mapping[str, subprocess.Popen[str]], logs: Path | None = None) -> None:
    while True:
        for name, process in processes_by_name.items():
            if process.poll() is not None:
                raise ServeError(_ended(name, process, logs and logs / f"{name}.log"))
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
                f"port {port} is taken: stop what listens there, or name another with --port"
            ) from error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
