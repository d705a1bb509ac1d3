"""Combinations of params as runs of the deployment `experiment`, so that N workers take N at once.

Each run happens in its worker's own clone and comes back as an artifact, which becomes a DVC
experiment here. A worker that dies costs the combination that it was at, which is tried again.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling

from flows.experiments.parcels import unpack
from flows.experiments.product import Combination
from flows.repository import GitError, run_git
from flows.single_experiment import PARCEL

POOL: Final = "blocklens-experiments"
DEPLOYMENT: Final = "experiment/experiment"
ATTEMPTS: Final = 3
"""How often a combination is sent whose worker dies. One that fails is not sent again."""
PATIENCE_S: Final = 300.0
"""So long may there be no worker, or no answer of the server."""
_POLL_S = 2.0
_QUEUED_PER_WORKER = 2
"""One that it is at and one that it can take next; the others stay here, where they end with us."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class _Sent:
    cell: Combination
    attempt: int


class _Board:
    """What waits, what was sent, and what has failed."""

    def __init__(self, cells: Sequence[Combination]) -> None:
        self.waiting = deque(_Sent(cell, 1) for cell in cells)
        self.sent: dict[UUID, _Sent] = {}
        self.failed: list[str] = []

    def give_up(self, reason: str) -> None:
        """Count all that is not done as failed."""
        self.failed += [
            f"{each.cell.name}: {reason}" for each in [*self.sent.values(), *self.waiting]
        ]
        self.waiting.clear()
        self.sent.clear()


def online_workers() -> int:
    """Return how many workers for single experiments the server has heard of lately."""
    with get_client(sync_client=True) as client:
        return _online(client)


def run_on_workers(root: Path, cells: Sequence[Combination], target: str) -> list[str]:
    """Have workers run the combinations, make them experiments of `root`, and return what failed.

    Whatever ends it early, Ctrl-C and cancellation included, cancels the runs that it has sent.
    """
    logger, board = get_run_logger(), _Board(cells)
    commit = run_git(root, "rev-parse", "HEAD")
    with get_client(sync_client=True) as client:
        try:
            heard = time.monotonic()
            while board.waiting or board.sent:
                online = _patiently(lambda: _online(client))
                heard = time.monotonic() if online else heard
                if time.monotonic() - heard > PATIENCE_S:
                    _cancel(client, board)
                    board.give_up(f"no worker of the pool {POOL} for {PATIENCE_S:g} s")
                    break
                while board.waiting and len(board.sent) < _QUEUED_PER_WORKER * online:
                    each = board.waiting.popleft()
                    board.sent[_send(each.cell, target, commit)] = each
                for run in _patiently(lambda: _ended(client, board)):
                    _settle(client, root, board, run)
                    left = len(board.waiting) + len(board.sent)
                    logger.info("%s: %s; %d left", run.name, _said(run.state), left)
                time.sleep(_POLL_S)
        except BaseException:
            _cancel(client, board)
            raise
    return board.failed


def _send(cell: Combination, target: str, commit: str) -> UUID:
    parameters = {
        "name": cell.name, "changes": cell.changes, "target": target, "commit": commit,
    }  # fmt: skip
    run = _patiently(
        lambda: run_deployment(
            DEPLOYMENT, parameters=parameters, flow_run_name=cell.name, timeout=0
        )
    )
    assert isinstance(run, FlowRun)
    return run.id


def _settle(client: SyncPrefectClient, root: Path, board: _Board, run: FlowRun) -> None:
    """Take the result of a run that has ended, send it again, or note why it failed."""
    each, state = board.sent.pop(run.id), run.state
    assert state is not None
    if state.is_completed():
        try:
            unpack(root, each.cell.name, _patiently(lambda: _parcel(client, run.id)))
        except GitError as error:
            board.failed.append(str(error))
    elif state.is_crashed() and each.attempt < ATTEMPTS:
        board.waiting.append(_Sent(each.cell, each.attempt + 1))
    elif state.is_failed():
        board.failed.append(state.message or each.cell.name)
    else:
        often = f" {ATTEMPTS} times" if state.is_crashed() else ""
        board.failed.append(f"{each.cell.name}: {_said(state)}{often}")


def _parcel(client: SyncPrefectClient, run_id: UUID) -> str:
    """Return what a run has sent.

    Raises:
        GitError: nothing.
    """
    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(any_=[PARCEL])
    )
    found = client.read_artifacts(artifact_filter=wanted)
    if not found:
        raise GitError(f"run {run_id} has left no experiment")
    return str(json.loads(str(found[0].data)))  # as Prefect wrote it: Artifact.format, 3.8.8


def _ended(client: SyncPrefectClient, board: _Board) -> list[FlowRun]:
    if not board.sent:
        return []
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[*board.sent]))
    )
    return [run for run in runs if run.state is not None and run.state.is_final()]


def _online(client: SyncPrefectClient) -> int:
    try:
        workers = client.read_workers_for_work_pool(POOL)
    except PrefectHTTPStatusError as error:  # not ObjectNotFound, as elsewhere in 3.8.8's client
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        return 0
    return sum(worker.status == WorkerStatus.ONLINE for worker in workers)


def _cancel(client: SyncPrefectClient, board: _Board) -> None:
    """Have all runs that were sent stopped; one that has just ended refuses, which is as good."""
    for run_id in board.sent:
        client.set_flow_run_state(run_id, Cancelling())


def _patiently(ask: Callable[[], _Answer]) -> _Answer:
    """Return what the server answers, which may be away for a while."""
    since = time.monotonic()
    while True:
        try:
            return ask()
        except httpx.TransportError:
            if time.monotonic() - since > PATIENCE_S:
                raise
            time.sleep(_POLL_S)


def _said(state: State | None) -> str:
    return state.name.lower() if state is not None and state.name else "no state"
