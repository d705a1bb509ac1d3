"""Jobs are runs of Prefect's deployment `pipeline/on-demand`: its page shows the same ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
import httpx  # Prefect's own client raises its errors
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort, LogSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_AUTH_STRING

from flows.mcp_server.limits import JOBS, LOG_CHARACTERS, LOG_LINES
from flows.mcp_server.requests import RequestError
from flows.registration import POOL
from stages.contracts.errors import BlocklensError, Problem

DEPLOYMENT: Final = "pipeline/on-demand"
MCP_TAG: Final = "mcp"


class JobsError(BlocklensError, RuntimeError):
    """Prefect's server does not answer, or has no deployments."""


@dataclass(frozen=True)
class Order:
    """What a job is to do: the stages to reach, the params of its run, and what to call it."""

    targets: tuple[str, ...]
    overrides: Mapping[str, Any]
    tags: tuple[str, ...]
    name: str | None


async def start_job(url: str, order: Order) -> dict[str, Any]:
    """Ask for a run and return it; it begins when the worker is free.

    Raises:
        JobsError: Prefect's server does not answer.
    """
    async with _client(url) as client:
        run = await client.create_flow_run_from_deployment(
            await _deployment(client),
            parameters={"targets": list(order.targets), "overrides": dict(order.overrides)},
            tags=[MCP_TAG, *order.tags],
            name=order.name,
        )
        return _described(run)


async def list_jobs(url: str, limit: int, offset: int) -> list[dict[str, Any]]:
    """Return the runs of the deployment, the newest first, however they were started."""
    async with _client(url) as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[await _deployment(client)])
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=min(max(limit, 1), JOBS),
            offset=max(offset, 0),
        )
        return [_described(run) for run in runs]


async def job_status(url: str, job: UUID) -> dict[str, Any]:
    """Return the state of a job, its stages so far, and the results that its run has left.

    Raises:
        RequestError: there is no such job.
    """
    async with _client(url) as client:
        run = await _run(client, job)
        tasks = await client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[job]))
        )
        stages = sorted(tasks, key=lambda task: str(task.expected_start_time or ""))
        return {
            **_described(run),
            "stages": [{"stage": task.name, "state": task.state_name} for task in stages],
            "results": await _results(client, job),
        }


async def job_parameters(url: str, job: UUID) -> dict[str, Any]:
    """Return the params that a job was started with; RequestError where there is no such job."""
    async with _client(url) as client:
        overrides: dict[str, Any] = (await _run(client, job)).parameters.get("overrides") or {}
        return overrides


async def job_files(url: str, jobs: Sequence[UUID]) -> dict[UUID, list[dict[str, Any]]]:
    """Return the files that each of these jobs has made; a job that left none is missing."""
    async with _client(url) as client:
        found = await _artifacts(client, jobs, "files")
    return {
        artifact.flow_run_id: json.loads(str(artifact.data))
        for artifact in found
        if artifact.flow_run_id is not None
    }


async def job_logs(url: str, job: UUID, limit: int, offset: int) -> dict[str, Any]:
    """Return lines of a job's log from `offset` on, and where the next ones begin."""
    async with _client(url) as client:
        await _run(client, job)
        logs = await client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[job])),
            limit=min(max(limit, 1), LOG_LINES),
            offset=max(offset, 0),
            sort=LogSort.TIMESTAMP_ASC,
        )
    lines: list[str] = []
    room = LOG_CHARACTERS
    for log in logs:
        if lines and len(log.message) > room:
            break
        lines.append(log.message[:LOG_CHARACTERS])
        room -= len(lines[-1])
    return {"lines": lines, "next_offset": max(offset, 0) + len(lines)}


async def stop_job(url: str, job: UUID) -> dict[str, Any]:
    """Ask for the end of a job; a stage that runs saves its state first.

    Raises:
        RequestError: there is no such job, or it has ended.
    """
    async with _client(url) as client:
        run = await _run(client, job)
        if run.state is not None and run.state.is_final():
            problem = Problem(str(job), f"is {run.state_name}", "It has ended already.")
            raise RequestError("This job cannot be stopped", [problem])
        result = await client.set_flow_run_state(job, State(type=StateType.CANCELLING))
        if result.status is SetStateStatus.ABORT:
            reason = getattr(result.details, "reason", None) or "Prefect refuses"
            problem = Problem(str(job), str(reason), "Ask for its status.")
            raise RequestError("This job cannot be stopped", [problem])
        return _described(await client.read_flow_run(job))


async def workers(url: str) -> list[dict[str, Any]]:
    """Return name and status of the workers that run jobs."""
    async with _client(url) as client:
        found = await client.read_workers_for_work_pool(POOL)
        return [{"worker": each.name, "status": str(each.status.value)} for each in found]


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[PrefectClient]:
    try:
        async with PrefectClient(url, auth_string=PREFECT_API_AUTH_STRING.value()) as client:
            yield client
    except httpx.TransportError as error:
        raise JobsError(
            f"Prefect's server does not answer at {url}: start it with `make serve`, or name "
            "another in PREFECT_API_URL"
        ) from error
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise JobsError(f"Prefect's server at {url} answers with {status}") from error


async def _deployment(client: PrefectClient) -> UUID:
    try:
        return (await client.read_deployment_by_name(DEPLOYMENT)).id
    except ObjectNotFound as error:
        raise JobsError(
            f"Prefect's server knows no deployment {DEPLOYMENT}: `make serve` registers it"
        ) from error


async def _run(client: PrefectClient, job: UUID) -> FlowRun:
    """Return a run of our deployment: those of others are none of its jobs."""
    deployment = await _deployment(client)
    with contextlib.suppress(ObjectNotFound):
        run = await client.read_flow_run(job)
        if run.deployment_id == deployment:
            return run
    problem = Problem(str(job), "is no job", "list-training-jobs has them.")
    raise RequestError("This job is not here", [problem])


async def _results(client: PrefectClient, job: UUID) -> dict[str, Any]:
    found = await _artifacts(client, [job], "metrics", "files", "blocks")
    return {
        str(artifact.key): str(artifact.data)
        if artifact.key == "metrics"
        else json.loads(str(artifact.data))
        for artifact in found
    }


async def _artifacts(client: PrefectClient, jobs: Sequence[UUID], *keys: str) -> list[Artifact]:
    """Return what jobs left under these keys: of all that they left, one answer has 200."""
    chosen = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=list(jobs)), key=ArtifactFilterKey(any_=list(keys))
    )
    return await client.read_artifacts(artifact_filter=chosen)


def _described(run: FlowRun) -> dict[str, Any]:
    state = run.state
    return {
        "job": str(run.id),
        "name": run.name,
        "state": run.state_name,
        "ended": state is not None and state.is_final(),
        "message": (state.message if state is not None else None) or "",
        "targets": run.parameters.get("targets") or [],
        "tags": sorted(run.tags),
        "run_seconds": round(run.total_run_time.total_seconds(), 1),
    }
