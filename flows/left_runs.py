"""Runs that a dead worker left behind.

Prefect goes on counting them towards the pool's limit, so that nothing else starts, until they are
ended: at once by `end_left_runs`, or by an automation of the server once their heartbeat is missed.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Final

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

ZOMBIES: Final = "Runs without a heartbeat are crashed"
DEAD_AFTER_S: Final = 300
_UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_log = logging.getLogger(__name__)


async def register_automation() -> None:
    """Have the server end runs that are not heard of any more, unless it does so already."""
    try:
        await Automation.aread(name=ZOMBIES)
    except (ValueError, ObjectNotFound):
        await crash_zombies().acreate()


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


async def end_left_runs(pool: str) -> None:
    """End the runs of a pool whose process is not on this machine any more.

    Only where all workers of the pool are on this machine: a process is known by its number alone.
    """
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNDER_WAY))
            ),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        )
        for run in runs:
            if _is_there(run.infrastructure_pid):
                continue
            if run.state_type == StateType.CANCELLING:
                state: State[None] = Cancelled(
                    message="Its process was gone before it could say so."
                )
            else:
                state = Crashed(
                    message="Its process died with its worker. Start it again, it goes on where "
                    "it was."
                )
            await client.set_flow_run_state(run.id, state, force=True)
            _log.info("run %s had lost its process: %s", run.name, state.name)


def _is_there(process: str | None) -> bool:
    """Return whether a process is alive and Prefect's: its number may belong to another by now."""
    try:
        return b"prefect" in Path(f"/proc/{int(process or '')}/cmdline").read_bytes()
    except (ValueError, OSError):  # it never had a process, or has none now
        return False
