"""One combination of a sweep as a flow run of its own: the deployment `experiment`.

A sweep sends it to the workers of the pool `blocklens-experiments` (experiments/fan_out.py). It is
run in the worker's own clone, at the sweep's commit, and leaves the experiment as an artifact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect import flow, get_run_logger
from prefect.artifacts import Artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import processes
from flows.experiments.dvc_experiments import read_experiments, run_experiment
from flows.experiments.parcels import pack
from flows.graph import run_dvc
from flows.progress import ProgressBoard
from flows.repository import run_git
from flows.repro import exclusive_run
from flows.worker_clone import update_own_clone
from stages.contracts.errors import BlocklensError

PARCEL: Final = "experiment-parcel"
"""Key of the artifact that has the experiment."""


@flow(name="experiment", persist_result=False)
def experiment(name: str, changes: dict[str, Any], target: str, commit: str) -> State[Any]:
    """Run the pipeline of `commit` up to `target` with changed params, as DVC experiment `name`.

    One that is here already, of a sweep that did not come to hear of it, is sent as it is.
    """
    root = Path.cwd()
    processes.allow_starts()
    logger, board = get_run_logger(), ProgressBoard(name)

    def on_line(line: str) -> None:
        logger.info(line)
        board.follow(line)

    try:
        with exclusive_run(root):
            if run_git(root, "rev-parse", "HEAD") != commit:
                return Failed(message=f"{name}: {root} is not at commit {commit}")
            if found := name in read_experiments(root):
                logger.info("%s is here already", name)
            else:
                run_experiment(root, name, target, changes, on_line)
            _share_cache(root, name)
            Artifact(type="git-bundle", key=PARCEL, data=pack(root, name)).create()
    except BlocklensError as error:
        return Failed(message=str(error))
    except BaseException:
        processes.stop_all()
        raise
    return Completed(name="Unchanged" if found else "Ran")


def update_clone_to_sweep() -> dict[str, str]:
    """Bring this worker's clone to the commit of the sweep: the pull step of `experiment`."""
    return update_own_clone(str(flow_run.parameters["commit"]))


def _share_cache(root: Path, name: str) -> None:
    """Send what the experiment made to DVC's remote, if there is one: for other machines."""
    if run_dvc(root, "remote", "list").strip():
        run_dvc(root, "exp", "push", "--quiet", "--force", "origin", name)
