"""The stages of dvc.yaml as one Prefect flow: a task per stage, then artifacts.

    python -m flows.pipeline [--force] [STAGE ...]

The flow owns no graph and no parameter of its own. It does what `dvc repro` does, stage by stage
in DVC's own order and one at a time, so that dvc.lock comes out the same, byte for byte. What
Prefect adds is a record of the run, retries, time-outs, cancellation, schedules and artifacts.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed
from prefect.tasks import Task, exponential_backoff

from flows import processes
from flows.artifacts import publish_files, publish_results, publish_states
from flows.command_line import run_to_exit
from flows.graph import PlannedStage, read_plan
from flows.overrides import apply_overrides
from flows.progress import ProgressBoard
from flows.repro import exclusive_run, run_stage
from flows.targets import default_targets
from stages.contracts.errors import BlocklensError

RETRY_BACKOFF_S = 10
"""The first retry waits this long, each further one twice as long as the one before."""


@flow(name="pipeline", persist_result=False)
def pipeline(
    targets: list[str] | None = None,
    force: bool = False,
    overrides: dict[str, Any] | None = None,
) -> State[dict[str, str]]:
    """Run the stages of the dvc.yaml in the working directory, and what they need first.

    No targets means all stages, and for a LoRA from elsewhere in split.adapter those that use it
    (flows/targets.py); `force` runs those that did not change too. `overrides` maps
    names such as `train.rank` to values, which are checked and written into params.yaml before
    anything runs. The result maps each stage to Ran, Unchanged or FromRunCache. After a failed
    stage nothing more runs, and the flow run fails with that stage's own message.
    """
    root = Path.cwd()
    processes.allow_starts()
    logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)
    try:
        with exclusive_run(root):
            if overrides:
                apply_overrides(root, overrides)
            return _run(root, read_plan(root, targets or default_targets(root)), force)
    except BlocklensError as error:
        return Failed(message=str(error))
    except BaseException:
        # Cancellation reaches the main thread alone: whatever still runs is stopped from here.
        processes.stop_all()
        raise


@task(cache_policy=NO_CACHE, persist_result=False)
def reproduce(stage: str, force: bool, timeout_s: float | None) -> State[Any]:
    """Run one stage through DVC; the name of the state says what happened."""
    logger, board = get_run_logger(), ProgressBoard(stage)

    def on_line(line: str) -> None:
        logger.info(line)
        board.follow(line)

    try:
        outcome = run_stage(Path.cwd(), stage, on_line, force=force, timeout_s=timeout_s)
    except BlocklensError as error:
        return Failed(message=str(error))
    # No data: Prefect knows a result by its identity, and equal words would tie stages together.
    return Completed(name=outcome.value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the flow from the command line; exit code 1 with the stage's message if it fails."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument(
        "stages",
        nargs="*",
        metavar="STAGE",
        help="default: all of dvc.yaml that split.adapter needs",
    )
    parser.add_argument("--force", action="store_true", help="run unchanged stages too")
    options = parser.parse_args(arguments)
    logging.getLogger("flows").setLevel(logging.INFO)
    stages = options.stages or None
    run_to_exit(lambda: pipeline(stages, options.force, return_state=True))


def _run(root: Path, plan: Sequence[PlannedStage], force: bool) -> State[dict[str, str]]:
    states: dict[str, State[Any]] = {}
    rows: list[dict[str, Any]] = []
    for stage in plan:
        start = time.monotonic()
        states[stage.name] = _run_task(stage, force, states)
        seconds = round(time.monotonic() - start, 1)
        rows.append({"stage": stage.name, "state": states[stage.name].name, "seconds": seconds})
        if not states[stage.name].is_completed():
            break
    rows += [{"stage": s.name, "state": "NotRun", "seconds": 0} for s in plan[len(rows) :]]
    publish_states(rows)
    done = [name for name, state in states.items() if state.is_completed()]
    publish_files(root, done)
    for state in states.values():
        if not state.is_completed():
            return Failed(message=state.message)
    publish_results(root, done)
    return Completed(
        message=_summary([row["state"] for row in rows]),
        data={row["stage"]: row["state"] for row in rows},
    )


def _run_task(stage: PlannedStage, force: bool, states: Mapping[str, State[Any]]) -> State[Any]:
    earlier = [states[name] for name in stage.after]
    timeout_s = stage.hints.timeout_s
    return _task_of(stage)(stage.name, force, timeout_s, wait_for=earlier, return_state=True)


def _task_of(stage: PlannedStage) -> Task[[str, bool, float | None], State[Any]]:
    # Without tags: for each Prefect asks its server for a place, which took two seconds, or sixty.
    return reproduce.with_options(
        name=stage.name,
        task_run_name=stage.name,
        retries=stage.hints.retries,
        retry_delay_seconds=exponential_backoff(RETRY_BACKOFF_S),
        retry_condition_fn=_may_retry,
    )


def _may_retry(_task: Task[..., Any], _run: TaskRun, _state: State[Any]) -> bool:
    return not processes.is_stopping()


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Drop the `NoneType: None` that Prefect logs for a task that returns a failed state."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


def _summary(names: Sequence[str]) -> str:
    counts = {name: names.count(name) for name in sorted(set(names))}
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no stages"


if __name__ == "__main__":
    main()
