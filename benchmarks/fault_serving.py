"""Kills of a Prefect worker and a Prefect server: the part of benchmarks/faults.py with Prefect.

One project is served for all of these cases. For each its checkout goes to the commit before some
stage, with DVC's cache of that time and a new clone for the worker.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx2

from benchmarks.fault_project import (
    Undisturbed,
    difference,
    end_processes,
    environment,
    lend_later_stages,
    processes_in,
    running_stage,
    wait_for,
)
from benchmarks.faults import LIMIT_S, Case, moment
from flows.repository import run_git

VICTIMS: Final = ("worker", "server")
COMMAND: Final = "prefect deployment run pipeline/on-demand"
CLONE: Final = Path(".blocklens/worker")
_RUN_ID: Final = re.compile(r"UUID: ([0-9a-f-]{36})")
_ENDED: Final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def run_cases(undisturbed: Undisturbed, folder: Path, times: int) -> Iterator[Case]:
    """Kill the worker, and the server, in the middle of a deployment's run."""
    results = folder.parents[1] / "cases"
    missing = [
        (victim, number)
        for number in range(times)
        for victim in VICTIMS
        if not (results / f"{victim}-{number}.json").is_file()
    ]
    if not missing:
        return
    shutil.rmtree(folder, ignore_errors=True)
    project = folder / "project"
    shutil.copytree(undisturbed.project, project, symlinks=True)
    served = Served(project, folder / "serve.log")
    try:
        for victim, number in missing:
            yield _run_case(undisturbed, served, victim, number)
    finally:
        served.stop()


def _run_case(undisturbed: Undisturbed, served: Served, victim: str, number: int) -> Case:
    stage, after_s = moment(undisturbed, victim, number)
    clone = served.project / CLONE
    while True:
        case = Case(victim, number, stage, round(after_s, 1), command=COMMAND)
        go_back(served.project, undisturbed.before[stage], stage)
        if number > 0:
            lend_later_stages(undisturbed, served.project, stage)
        run = served.start_run()
        going = partial(served.is_going, run)
        if not wait_for(lambda: running_stage(clone) == stage, LIMIT_S, going):
            raise RuntimeError(f"{stage} never ran: {served.state(run)}")
        time.sleep(after_s)
        case.stage = running_stage(clone)
        if going():
            break
        after_s *= 0.7
    served.kill(victim)
    case.said = served.wait_for_end()
    case.problems += [f"still running: {each}" for each in end_processes(served.project)]
    served.start()
    again = served.start_run()
    wait_for(lambda: not served.is_going(again), LIMIT_S, lambda: True)
    if served.state(again) != "COMPLETED":
        case.problems.append(f"the second run is {served.state(again)}")
    if served.state(run) != "CRASHED":
        case.problems.append(f"the first run is {served.state(run)}")
    case.again = served.stages_run(again)
    case.problems += difference(clone, undisturbed.project, served.project)
    return case


def go_back(project: Path, before: Path, stage: str) -> None:
    """Bring the served checkout to the commit before a stage, with the cache of that time."""
    run_git(project, "checkout", "--quiet", "--force", f"before-{stage}")
    for cache in (project / ".dvc" / "cache", project / CLONE):
        shutil.rmtree(cache, ignore_errors=True)
    if (before / ".dvc" / "cache").is_dir():
        shutil.copytree(before / ".dvc" / "cache", project / ".dvc" / "cache", symlinks=True)


class Served:
    """`python -m flows.serve` in a project, and the API of its server."""

    def __init__(self, project: Path, log: Path) -> None:
        self.project, self.log = project, log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = environment() | {
            "PREFECT_API_URL": "",
            "PYTHONPATH": str(project),  # as if it were installed there
            "PREFECT_HOME": str(project / ".blocklens" / "prefect"),
        }
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes runs."""
        self.log.write_text("")
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.serve", "--port", str(self.port)],
                cwd=self.project,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if not wait_for(
            lambda: "Prefect: http" in self.log.read_text(),
            LIMIT_S,
            lambda: self.process.poll() is None,
        ):
            raise RuntimeError(self.log.read_text())

    def start_run(self) -> str:
        """Give the documented command, and return the run's id."""
        command = [sys.executable, "-m", "prefect", "deployment", "run", "pipeline/on-demand"]
        settings = self.environment | {"PREFECT_API_URL": self.api}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
        found = _RUN_ID.search(done.stdout)
        assert found, done.stdout
        return found[1]

    def state(self, run: str) -> str:
        """Return the type of a run's state."""
        state: str = self._ask(f"flow_runs/{run}")["state"]["type"]
        return state

    def is_going(self, run: str) -> bool:
        """Return whether a run has not ended yet."""
        return self.state(run) not in _ENDED

    def scheduled_runs(self, state: str) -> list[dict[str, Any]]:
        """Return the runs that a schedule started and that are in a state, the newest last."""
        runs = httpx2.post(f"{self.api}/flow_runs/filter", json={}, timeout=60).json()
        found = [run for run in runs if run["auto_scheduled"] and run["state"]["type"] == state]
        return sorted(found, key=lambda run: str(run["end_time"]))

    def stages_run(self, run: str) -> list[str]:
        """Return the stages that a run really ran, in the order in which they ended."""
        address, wanted = "task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}
        tasks = httpx2.post(f"{self.api}/{address}", json=wanted, timeout=60).json()
        ran = [task for task in tasks if task["state"]["name"] == "Ran"]
        return [task["name"] for task in sorted(ran, key=lambda task: task["end_time"])]

    def _ask(self, address: str) -> Any:
        for _ in range(5):
            try:
                return httpx2.get(f"{self.api}/{address}", timeout=60).raise_for_status().json()
            except httpx2.HTTPError:
                time.sleep(2.0)
        raise RuntimeError(f"{self.api}/{address} does not answer")

    def kill(self, victim: str) -> None:
        """Kill the worker or the server, none of its children and not its guard."""
        words = ["-m", "prefect", victim, "start"]
        found = [
            process
            for process, command in processes_in(self.project).items()
            if command[1:5] == words
        ]
        assert len(found) == 1, processes_in(self.project)
        os.kill(found[0], signal.SIGKILL)

    def wait_for_end(self) -> str:
        """Return the first line of what it said when it ended because of that."""
        self.process.wait(timeout=LIMIT_S)
        said = self.log.read_text().splitlines()
        return next((line for line in said if "ended" in line), "").partition(" The end of")[0]

    def stop(self) -> None:
        """Stop it, as Ctrl-C does: a shell may have told us to ignore that."""
        self.process.terminate()
        self.process.wait(timeout=LIMIT_S)
        end_processes(self.project)
