"""What Prefect's server has to know of this project: work pools, deployments, automations.

They are registered where they are missing, and anew once prefect.yaml or a flow's file is another
one. In between, what people set on Prefect's page or with its commands stays: a paused schedule,
another time, a deployment moved to another pool.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
import httpx  # Prefect's own client raises its errors
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.variables import Variable

from flows.experiments.fan_out import POOL as EXPERIMENTS
from flows.left_runs import register_automations
from flows.local_server import ServerError
from stages.contracts.errors import BlocklensError

POOL: Final = "blocklens"
NOTED: Final = "blocklens_registered"
"""Prefect's variable with the hash of the files that were registered last."""

_PREFECT: Final = (sys.executable, "-m", "prefect")
_COMMANDS: Final = (
    ("work-pool", "create", POOL, "--type", "process", "--overwrite"),
    ("work-pool", "set-concurrency-limit", POOL, "1"),
    ("work-pool", "create", EXPERIMENTS, "--type", "process", "--overwrite"),
    ("--no-prompt", "deploy", "--all"),
)


class RegistrationError(BlocklensError, RuntimeError):
    """Prefect refused a pool or a deployment; the message is its own."""


def register(environment: Mapping[str, str], source: Path) -> None:
    """Have the server that `environment` names know the pools, deployments and automations.

    Raises:
        RegistrationError: Prefect refuses one of them.
        ServerError: the server does not answer.
    """
    url, content = environment["PREFECT_API_URL"], _content(source)
    with temporary_settings({PREFECT_API_URL: url}):
        try:
            if not _is_registered(source, content):
                for command in _COMMANDS:
                    _run(command, environment, source)
                Variable.set(NOTED, content, overwrite=True)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            raise ServerError(f"Prefect's server does not answer at {url}: {error}") from error
    register_automations(url, (POOL, EXPERIMENTS))


def _is_registered(source: Path, content: str) -> bool:
    """Return whether the server has every pool and deployment, and these files were the last."""
    document = yaml.safe_load((source / "prefect.yaml").read_text(encoding="utf-8"))
    wanted = {deployment["name"] for deployment in document["deployments"]}
    with get_client(sync_client=True) as client:
        pools = {pool.name for pool in client.read_work_pools()}
        deployments = {deployment.name for deployment in client.read_deployments()}
    noted = Variable.get(NOTED, default="")
    return pools >= {POOL, EXPERIMENTS} and deployments >= wanted and noted == content


def _content(source: Path) -> str:
    """Return a hash of prefect.yaml and of all flows, whose parameters are registered, too."""
    files = [source / "prefect.yaml", *sorted((source / "flows").rglob("*.py"))]
    hashes = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _run(command: tuple[str, ...], environment: Mapping[str, str], source: Path) -> None:
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
        raise RegistrationError(f"prefect {' '.join(command)} failed: {said}")
