"""Runs that a dead worker left behind.

Prefect goes on counting them towards the pool's limit, so that nothing else starts, until they are
ended: by the automation of flows/serve.py once their heartbeat is missed, or here, at once.
"""

from __future__ import annotations

import logging
from pathlib import Path

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Crashed

_UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_log = logging.getLogger(__name__)


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
