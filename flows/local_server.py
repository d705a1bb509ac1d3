"""A Prefect API for one run on this machine, where no server is named in PREFECT_API_URL.

Prefect would start one by itself, but as a plain child of ours: seen with 3.8.8, Ctrl-C on a
terminal kills that server together with the flow, which then retries its state report for two
minutes; kill -9 of the flow leaves the server running for ever; and a server that dies at import
(a FastAPI too new) is waited for until the time-out. So we start the same application under our
guard, and watch it start.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_UI_URL,
    temporary_settings,
)

from flows import processes
from stages.contracts.errors import BlocklensError

APPLICATION: Final = "prefect.server.api.server:create_app"
STOP_GRACE_S: Final = 5.0
SHOWN_BYTES: Final = 2000
_POLL_S = 0.1
_log = logging.getLogger(__name__)


class ServerError(BlocklensError, RuntimeError):
    """A Prefect server of ours did not start."""


@contextlib.contextmanager
def prefect_api() -> Iterator[None]:
    """Give the flows inside an API: the one in PREFECT_API_URL, else one until this process ends.

    The temporary one keeps its database in PREFECT_HOME, where a later `prefect server start`
    shows its runs. Raises ServerError with the end of the server's log if it does not start.
    """
    if PREFECT_API_URL.value():
        yield
        return
    home = Path(PREFECT_HOME.value())
    home.mkdir(parents=True, exist_ok=True)
    with _one_start_at_a_time(home):
        server, url = _start(home / "server.log")
    # At exit and not before: until then Prefect's workers send their last logs and events.
    atexit.register(processes.stop, server, STOP_GRACE_S)
    # No page is served, so no address of one is shown.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_UI_URL: ""}):
        yield


@contextlib.contextmanager
def _one_start_at_a_time(home: Path) -> Iterator[None]:
    """Wait until no other start in this home migrates the database."""
    with (home / "server-start.lock").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(log_path: Path) -> tuple[subprocess.Popen[str], str]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "uvicorn", "--factory", APPLICATION]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    # As prefect/server/api/server.py starts its own: no page, and only the services a run needs.
    environment = os.environ | {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    with log_path.open("w", encoding="utf-8") as log:
        server = processes.start_guarded(
            command, STOP_GRACE_S, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    _log.info("starting a temporary Prefect server at %s", url)
    try:
        wait_until_healthy(server, url, log_path)
    except BaseException:
        processes.stop(server, STOP_GRACE_S)
        raise
    return server, url


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(server: subprocess.Popen[str], url: str, log_path: Path) -> None:
    """Return once a Prefect server answers at `url`.

    Raises:
        ServerError: it ended, or did not answer in time; with the end of its log.
    """
    limit_s = _startup_limit_s()
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ServerError(_failure(f"ended with exit code {server.returncode}", log_path))
        if _answers(url):
            return
        time.sleep(_POLL_S)
    raise ServerError(_failure(f"did not answer within {limit_s} s", log_path))


def _startup_limit_s() -> int:
    return int(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _failure(what: str, log_path: Path) -> str:
    end = log_path.read_text(encoding="utf-8", errors="replace")[-SHOWN_BYTES:].strip()
    return (
        f"Prefect's server {what}. `dvc repro` runs the same stages without Prefect; "
        "for Prefect, install the versions in requirements.lock (a newer FastAPI breaks it), or "
        f"name a running server in PREFECT_API_URL. The end of {log_path}:\n{end}"
    )
