"""Runs whose process died do not keep the next one waiting."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import LogCreate, WorkPoolCreate
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Pending, Running
from prefect.types._datetime import now

from flows.left_runs import end_left_runs
from flows.local_server import ServerError
from flows.pipeline import pipeline
from flows.worker_clone import worker_name

NOBODY = "4194305"  # above the largest id that Linux gives


async def make_runs(clone: Path, stack: ExitStack) -> dict[str, UUID]:
    """Make a run of each kind, taken by the worker of a clone, or by another machine's."""
    own, pool = worker_name(clone), f"pool-{uuid.uuid4().hex[:8]}"
    runs: dict[str, UUID] = {}
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        flow = await client.create_flow(pipeline)
        deployment = await client.create_deployment(flow, name=pool, work_pool_name=pool)
        for name, state, process, worker in (
            ("running", Running(), NOBODY, own),
            ("submitted", Pending(), None, own),
            ("cancelling", Cancelling(), NOBODY, own),
            ("alive", Running(), "its own", own),
            ("another's number", Running(), str(os.getpid()), own),
            ("another machine's", Running(), NOBODY, worker_name(clone) + "-2"),
            ("not yet anybody's", Pending(), None, None),
            ("not yet labelled", Pending(), None, None),
        ):
            run = await client.create_flow_run_from_deployment(deployment)
            await client.set_flow_run_state(run.id, state, force=True)
            if worker:
                await client.update_flow_run_labels(run.id, {"prefect.worker.name": worker})
            if process == "its own":
                process = str(stack.enter_context(living(run.id)).pid)
            if process:
                await client.update_flow_run(run.id, infrastructure_pid=process)
            runs[name] = run.id
        # What prefect/workers/base.py logs when it takes a run, a moment before it puts labels on.
        run_id = runs["not yet labelled"]
        said = f"Worker '{own}' submitting flow run '{run_id}'"
        await client.create_logs([LogCreate(
            name="prefect.flow_runs.worker", level=20, message=said, timestamp=now("UTC"),
            flow_run_id=run_id,
        )])  # fmt: skip
    return runs


def living(run: UUID) -> subprocess.Popen[bytes]:
    """Return a process that has the environment which Prefect's worker gives a run's."""
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": str(run)}
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, env=environment)


async def states(runs: dict[str, UUID]) -> dict[str, str]:
    """Return the type of each run's state."""
    async with get_client() as client:
        found = {name: (await client.read_flow_run(run)).state for name, run in runs.items()}
    return {name: state.type.value for name, state in found.items() if state}


@pytest.mark.usefixtures("prefect_server")
def test_runs_without_a_process_are_ended(tmp_path: Path) -> None:
    """A crashed worker's run held the pool's one place; those of another machine are not ours."""
    with ExitStack() as stack:
        runs = asyncio.run(make_runs(tmp_path / "clone", stack))
        end_left_runs(str(PREFECT_API_URL.value()), [str(tmp_path / "clone")])
    assert asyncio.run(states(runs)) == {
        "running": "CRASHED",
        "submitted": "CRASHED",
        "cancelling": "CANCELLED",
        "alive": "RUNNING",
        "another's number": "CRASHED",
        "another machine's": "RUNNING",
        "not yet anybody's": "PENDING",
        "not yet labelled": "CRASHED",
    }


def test_a_server_that_is_not_there_is_named() -> None:
    """A worker of another machine is often started before the tunnel to its server."""
    with pytest.raises(ServerError, match=r"does not answer at http://127\.0\.0\.1:9/api"):
        end_left_runs("http://127.0.0.1:9/api", [])
