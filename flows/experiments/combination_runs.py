"""Combinations of params run as DVC experiments: here one by one, or by workers at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.experiments.dvc_experiments import Recorded, read_experiments, run_experiment
from flows.experiments.fan_out import online_workers, run_on_workers
from flows.experiments.product import Combination
from flows.graph import run_dvc
from flows.progress import ProgressBoard
from stages.contracts.errors import BlocklensError
from stages.contracts.params import Params


def run_missing(
    root: Path, cells: Sequence[Combination], target: str, workers: bool = False
) -> list[str]:
    """Run what is missing, and return the messages of those that failed.

    With `workers`, those of the pool for experiments take it, if any are there; otherwise it is
    run here, each combination a task, one after the other.
    """
    logger = get_run_logger()
    missing = missing_combinations(cells, read_experiments(root))
    logger.info("%d experiments, %d of them to run", len(cells), len(missing))
    if workers and missing and (online := online_workers()):
        logger.info("%d workers take them", online)
        return run_on_workers(root, missing, target)
    failed = []
    for cell in missing:
        state = experiment.with_options(name=cell.name, task_run_name=cell.name)(
            cell.name, cell.changes, target, return_state=True
        )
        if not state.is_completed():
            failed.append(state.message or cell.name)
    return failed


@task(cache_policy=NO_CACHE, persist_result=False)
def experiment(name: str, changes: dict[str, Any], target: str) -> State[Any]:
    """Run one combination as a DVC experiment of the current commit."""
    logger, board = get_run_logger(), ProgressBoard(name)

    def on_line(line: str) -> None:
        logger.info(line)
        board.follow(line)

    try:
        run_experiment(Path.cwd(), name, target, changes, on_line)
    except BlocklensError as error:
        return Failed(message=str(error))
    return Completed(name="Ran")


def missing_combinations(
    cells: Sequence[Combination], recorded: dict[str, Recorded]
) -> list[Combination]:
    """Return the combinations that no finished experiment of that name with those params is for."""
    return [
        cell
        for cell in cells
        if cell.name not in recorded
        or Params.model_validate(recorded[cell.name][0]).model_dump(mode="json") != cell.params
    ]


def share_experiments(
    root: Path, cells: Sequence[Combination], recorded: dict[str, Recorded]
) -> None:
    """Send the experiments to the origin; what they made is in the cache that both share."""
    names = [cell.name for cell in cells if cell.name in recorded]
    if names:
        run_dvc(root, "exp", "push", "--quiet", "--no-cache", "--force", "origin", *names)
