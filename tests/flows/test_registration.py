"""What the server is told of this project, and when it is told again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL
from prefect.variables import Variable

from flows.experiments.fan_out import POOL as EXPERIMENTS
from flows.local_server import ServerError
from flows.registration import NOTED, POOL, RegistrationError, register

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(prefect_server: None, tmp_path: Path) -> Iterator[Path]:
    """A folder with our flows; what they leave on the server is taken away."""
    folder = tmp_path / "source"
    shutil.copytree(ROOT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "prefect.yaml", folder / "prefect.yaml")
    yield folder
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
    if Variable.get(NOTED) is not None:
        Variable.unset(NOTED)


def environment() -> dict[str, str]:
    """Return what `register` takes: our own, with the server's address."""
    return os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}


def nightly() -> DeploymentResponse:
    """Return the deployment with the schedule, as the server has it."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name("nightly/nightly")


def test_what_people_change_by_hand_outlives_a_restart(source: Path) -> None:
    """A night that was paused came back at two o'clock, and runs went to the worker of before."""
    register(environment(), source)
    made = nightly()
    assert made.work_pool_name == POOL
    assert [schedule.active for schedule in made.schedules] == [True]
    with get_client(sync_client=True) as client:
        client.update_deployment(made.id, DeploymentUpdate(work_pool_name=EXPERIMENTS))
        client.update_deployment_schedule(made.id, made.schedules[0].id, active=False)

    register(environment(), source)
    kept = nightly()
    assert kept.work_pool_name == EXPERIMENTS
    assert [schedule.active for schedule in kept.schedules] == [False]

    with (source / "flows" / "nightly.py").open("a", encoding="utf-8") as flow:
        flow.write("# a new version\n")
    register(environment(), source)
    assert nightly().work_pool_name == POOL
    with get_client(sync_client=True) as client:
        client.delete_deployment(made.id)
    register(environment(), source)
    assert [schedule.active for schedule in nightly().schedules] == [True]


def test_a_refusal_is_said_in_prefects_words(source: Path) -> None:
    """Nothing is noted as registered then, and the next start tries again."""
    (source / "flows" / "nightly.py").unlink()
    with pytest.raises(RegistrationError, match=r"(?s)deploy --all failed: .*nightly"):
        register(environment(), source)
    assert Variable.get(NOTED) is None


@pytest.mark.usefixtures("prefect_server")
def test_a_server_that_is_away_is_named() -> None:
    """The address is what a person has to look at."""
    nowhere = "http://127.0.0.1:9/api"
    with pytest.raises(ServerError, match=nowhere):
        register(environment() | {"PREFECT_API_URL": nowhere}, ROOT)
