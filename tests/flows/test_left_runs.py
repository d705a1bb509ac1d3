"""Runs whose process died do not keep the next one waiting."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelling, Pending, Running

from flows.left_runs import end_left_runs
from flows.pipeline import pipeline

NOBODY = "4194305"  # above the largest id that Linux gives


async def left_runs(pool: str, living: str) -> dict[str, str]:
    """Make a run of each kind in a pool, end those that are left, and return their states."""
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        flow = await client.create_flow(pipeline)
        deployment = await client.create_deployment(flow, name=pool, work_pool_name=pool)
        runs: dict[str, UUID] = {}
        for name, state, process in (
            ("running", Running(), NOBODY),
            ("submitted", Pending(), None),
            ("cancelling", Cancelling(), NOBODY),
            ("alive", Running(), living),
            ("another's number", Running(), str(os.getpid())),
        ):
            run = await client.create_flow_run_from_deployment(deployment)
            await client.set_flow_run_state(run.id, state, force=True)
            if process:
                await client.update_flow_run(run.id, infrastructure_pid=process)
            runs[name] = run.id
        await end_left_runs(pool)
        found = {name: (await client.read_flow_run(run)).state for name, run in runs.items()}
    return {name: state.type.value for name, state in found.items() if state}


@pytest.mark.usefixtures("prefect_server")
def test_runs_without_a_process_are_ended() -> None:
    """A crashed worker's run held the pool's one place until its heartbeat was missed."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # prefect"]) as run:
        states = asyncio.run(left_runs(f"pool-{uuid.uuid4().hex[:8]}", str(run.pid)))
        run.kill()
    assert states == {
        "running": "CRASHED",
        "submitted": "CRASHED",
        "cancelling": "CANCELLED",
        "alive": "RUNNING",
        "another's number": "CRASHED",
    }
