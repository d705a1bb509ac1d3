"""Runs that a dead worker left behind.

Prefect goes on counting them towards the pool's limit, so that nothing else starts, until they are
ended: at once by `end_left_runs`, where their worker is started again; or by automations of the
server, once their heartbeat is missed or they have not begun.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
import httpx  # Prefect's own client raises its errors
from prefect.automations import Automation
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Crashed

from flows.local_server import ServerError
from flows.worker_clone import PATIENCE_S, worker_name

ZOMBIES: Final = "Runs without a heartbeat are crashed"
UNBEGUN: Final = "Runs that do not begin are crashed"
DEAD_AFTER_S: Final = 300
UNBEGUN_AFTER_S: Final = int(PATIENCE_S) + 900
"""Before a run begins its worker may wait for the last one to save, and brings its clone up."""
_TAKEN: Final = re.compile(r"Worker '(?P<name>[^']+)' submitting flow run '")
"""prefect 3.8, prefect/workers/base.py: what it logs before it asks for the state Pending."""
_UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_log = logging.getLogger(__name__)


def register_automations(url: str, pools: Sequence[str]) -> None:
    """Have the server at `url` end runs that are not heard of, unless it does so already."""
    with temporary_settings({PREFECT_API_URL: url}):
        asyncio.run(_register(pools))


def end_left_runs(url: str, clones: Collection[str]) -> None:
    """End the runs that the workers of these clones took, and whose process is not there any more.

    Runs of other machines are none of ours: a process is known by its number there alone.

    Raises:
        ServerError: the server does not answer.
    """
    with temporary_settings({PREFECT_API_URL: url}):
        try:
            asyncio.run(_end({worker_name(clone) for clone in clones}))
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            raise ServerError(f"Prefect's server does not answer at {url}: {error}") from error


async def _register(pools: Sequence[str]) -> None:
    for automation in (crash_zombies(), crash_unbegun(pools)):
        try:
            await Automation.aread(name=automation.name)
        except (ValueError, ObjectNotFound):
            await automation.acreate()


def crash_zombies(after_s: int = DEAD_AFTER_S) -> Automation:
    """Return the automation that ends runs whose process died without a word.

    Source: docs.prefect.io/v3/advanced/detect-zombie-flows.
    """
    message = f"No sign of life for {after_s} s: its process or machine died."
    return _crash_after(ZOMBIES, "heartbeat", after_s, message)


def crash_unbegun(pools: Sequence[str], after_s: int = UNBEGUN_AFTER_S) -> Automation:
    """Return the automation that ends runs whose worker took them and died before they began.

    They send no heartbeat yet, and count towards the limits of their pools all the same. Other
    pools of the server, whose runs may wait long for a machine, are left alone.
    """
    message = f"Taken by a worker, and not begun after {after_s} s: the worker or its machine died."
    ours: dict[str, str | list[str]] = {
        "prefect.resource.role": "work-pool",
        "prefect.resource.name": list(pools),
    }
    return _crash_after(UNBEGUN, "Pending", after_s, message, ours)


def _crash_after(
    name: str,
    event: str,
    after_s: int,
    message: str,
    related: Mapping[str, str | list[str]] | None = None,
) -> Automation:
    """Return an automation that crashes a run of which nothing is heard so long after an event."""
    heard = ("heartbeat", "Running", "Completed", "Failed", "Cancelled", "Crashed")
    return Automation(
        name=name,
        trigger=EventTrigger(
            after={f"prefect.flow-run.{event}"},
            expect={f"prefect.flow-run.{each}" for each in heard},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(dict(related or {})),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=after_s),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"{message} Start it again, it goes on where it was.",
            )
        ],
    )


async def _end(workers: set[str]) -> None:
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNDER_WAY))
            ),
        )
        for run in runs:
            if await _taken_by(client, run) not in workers or _is_there(run):
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


async def _taken_by(client: PrefectClient, run: FlowRun) -> str | None:
    """Return the name of the worker that took a run; None if none has.

    A worker that is stopped between taking a run and putting its name on it has said so in the log.
    """
    if (label := run.labels.get("prefect.worker.name")) is not None:
        return str(label)
    logs = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    names = [match["name"] for log in logs if (match := _TAKEN.match(log.message))]
    return names[-1] if names else None


def _is_there(run: FlowRun) -> bool:
    """Return whether a run's process is alive: its number may belong to another by now."""
    try:
        number = int(run.infrastructure_pid or "")
        environment = Path(f"/proc/{number}/environ").read_bytes()
    except (ValueError, OSError):  # it never had a process, or has none now
        return False
    return f"PREFECT__FLOW_RUN_ID={run.id}".encode() in environment.split(b"\0")
