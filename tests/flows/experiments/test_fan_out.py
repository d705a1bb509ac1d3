"""A sweep on two workers: at once, each in its clone, back as experiments, a dead one made good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from flows.experiments.dvc_experiments import read_experiments
from flows.experiments.fan_out import POOL, online_workers
from flows.gpus import driver_gpus
from flows.serve import experiment_workers
from tests.flows.conftest import is_alive, run_dvc, wait_until
from tests.flows.sweep_project import ROOT, make_project
from tests.flows.test_serve import LIMIT_S, answers, free_port
from tests.repositories import git

HOOK = """\
echo $$ > {met}/$1
case $1 in
    4|6) while [ ! -e {met}/4 ] || [ ! -e {met}/6 ]; do sleep 0.1; done ;;
    12) if [ ! -e {met}/second ]; then touch {met}/second; sleep 1000; fi ;;
    *) echo "train: rank $1 is too much" >&2; exit 1 ;;
esac
"""
"""4 and 6 wait for each other, 12 hangs the first time, and what else there is fails."""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `python -m flows.serve` in a project, and end it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
        number = len(started)
        with (tmp_path / f"serve-{number}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.serve", *arguments],
                cwd=project,
                env={
                    **os.environ,
                    "HOOK": str(tmp_path / "hook.sh"),
                    "PREFECT_API_URL": "",
                    "PREFECT_HOME": str(tmp_path / f"prefect-{number}"),
                    "PREFECT_WORKER_QUERY_SECONDS": "2",
                    "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
                    "PREFECT_WORKER_WEBSERVER_PORT": str(free_port()),
                    "PYTHONPATH": str(ROOT),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in started:
        process.wait(timeout=120)


def call(api: str, path: str, **content: Any) -> Any:
    """Return what the server answers to a POST; one whose database is busy is asked again."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        answer = httpx2.post(f"{api}/{path}", json=content, timeout=LIMIT_S)
        if answer.status_code != httpx2.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert answer.is_success, answer.text
    return answer.json()


def online(api: str) -> int:
    """Return how many workers take experiments."""
    workers = call(api, f"work_pools/{POOL}/workers/filter")
    return len([each for each in workers if each["status"] == "ONLINE"])


def start_sweep(api: str, grid: dict[str, list[int]]) -> str:
    """Start a run of the deployment `sweep` and return its id."""
    (deployment,) = call(api, "deployments/filter", deployments={"name": {"any_": ["sweep"]}})
    parameters = {"grid": grid, "target": "train", "share": True}
    run = call(api, f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)
    return str(run["id"])


def finished(api: str, run: str) -> dict[str, Any]:
    """Return the last state of a run, once it has one."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        (found,) = call(api, "flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        state: dict[str, Any] = found["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.5)


def deployed(api: str) -> bool:
    """Return whether the last deployment of prefect.yaml is registered."""
    names = [each["name"] for each in call(api, "deployments/filter")]
    return "experiment" in names


def kill_worker_of(stage: int, workers: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Kill the `flows.serve` that a stage's process descends from, and return it."""
    by_pid = {process.pid: process for process in workers}
    pid = stage
    while pid not in by_pid:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(fields[1])
        assert pid > 1, "the stage has no worker of ours"
    by_pid[pid].kill()
    return by_pid[pid]


def crash(api: str, name: str) -> None:
    """Do at once what the automation against zombies does to a run after five minutes."""
    wanted = {"name": {"like_": name}, "state": {"type": {"any_": ["RUNNING"]}}}
    (run,) = call(api, "flow_runs/filter", flow_runs=wanted)
    call(api, f"flow_runs/{run['id']}/set_state", state={"type": "CRASHED"})


@pytest.mark.slow
def test_two_workers_share_a_sweep_and_one_may_die(tmp_path: Path, start: Start) -> None:
    """Two trainings at once; kill -9 of a worker costs its own, which the other one makes good.

    The experiments come back to the checkout with lock file, params and metrics, and the artifacts
    are those of a sweep in one place. A failure is told in the stage's words and not tried again.
    """
    project = make_project(tmp_path / "project")
    met = tmp_path / "met"
    met.mkdir()
    (tmp_path / "hook.sh").write_text(HOOK.format(met=met))
    api = f"http://127.0.0.1:{(port := free_port())}/api"
    start(project, "--port", str(port), "--clone", "../main")
    wait_until(lambda: answers(f"{api}/health"), "a server", LIMIT_S)
    wait_until(lambda: deployed(api), "deployments", LIMIT_S)
    elsewhere = ("--server", api, "--only-experiments", "--experiments", "1", "--clone")
    workers = [start(project, *elsewhere, f"../{name}") for name in ("left", "right")]
    wait_until(lambda: online(api) == len(workers), "two workers", LIMIT_S)

    grid = {"train.rank": [4, 6]}
    state = finished(api, start_sweep(api, grid))
    assert (state["type"], state["message"]) == ("COMPLETED", "2 experiments")
    found = read_experiments(project)
    losses = {each[0]["train"]["rank"]: each[1] for each in found.values()}
    assert losses == {
        rank: {"data/train/metrics.json": {"validation_loss": float(f"0.{rank}")}}
        for rank in grid["train.rank"]
    }
    head = git(project, "rev-parse", "HEAD")
    name = next(name for name in found if name.startswith("rank-6-"))
    lock = git(project, "show", f"refs/exps/{head[:2]}/{head[2:]}/{name}:dvc.lock")
    assert "train.rank: 6" in lock
    clones = [tmp_path / f"{side}-1" for side in ("left", "right")]
    assert [len(read_experiments(clone)) for clone in clones] == [1, 1]
    keys = {each["key"] for each in call(api, "artifacts/filter")}
    assert {"sweep", "sweep-plot", "sweep-page"} <= keys
    assert git(project, "status", "--porcelain") == ""

    grid["train.rank"] += [8, 12, 16]  # 8 is what params.yaml has: nothing to train
    killed: list[tuple[int, subprocess.Popen[str]]] = []

    def kill() -> bool:
        if (met / "second").exists() and (stage := (met / "12").read_text().strip()):
            killed.append((int(stage), kill_worker_of(int(stage), workers)))
        return bool(killed)

    run = start_sweep(api, grid)
    wait_until(kill, "rank 12 to train", LIMIT_S)
    (stage, _), *_ = killed
    wait_until(lambda: not is_alive(stage), "the guard to end the dead worker's stage", LIMIT_S)
    crash(api, "rank-12-")
    state = finished(api, run)
    assert state["type"] == "FAILED"
    assert state["message"].startswith("1 of 5 experiments failed:\nrank-16-")
    assert state["message"].endswith("train: rank 16 is too much")
    ranks = {each[0]["train"]["rank"] for each in read_experiments(project).values()}
    assert ranks == {4, 6, 8, 12}


def test_each_worker_has_a_clone_and_a_gpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPUs that CUDA_VISIBLE_DEVICES lists go round; without a list, all that there are."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    project = tmp_path / "project"
    git(tmp_path, "init", "--quiet", str(project))
    run_dvc(project, "init", "--quiet")
    git(project, "commit", "--quiet", "--message", "nothing")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    workers = experiment_workers(project, tmp_path / "clone", "http://nowhere/api", 3, None)
    assert [each.environment["CUDA_VISIBLE_DEVICES"] for each in workers.values()] == [
        "2",
        "5",
        "2",
    ]
    clones = [Path(each.environment["BLOCKLENS_CLONE"]) for each in workers.values()]
    assert clones == [tmp_path / f"clone-{number}" for number in (1, 2, 3)]
    assert all((clone / ".dvc").is_dir() for clone in clones)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for said, expected in (
        ("GPU-a, [N/A]\nGPU-b, Enabled\nGPU-c, Disabled\n", "GPU-a"),
        ("", None),
    ):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '{said}'\n")
        tool.chmod(0o755)
        workers = experiment_workers(project, tmp_path / "clone", "http://nowhere/api", 1, None)
        (worker,) = workers.values()
        assert worker.environment.get("CUDA_VISIBLE_DEVICES") == expected
        assert driver_gpus() == (["GPU-a", "GPU-c"] if said else [])
        monkeypatch.setenv("BLOCKLENS_PROCESSES", "2")  # each experiment takes two itself
        workers = experiment_workers(project, tmp_path / "clone", "http://nowhere/api", 1, None)
        assert "CUDA_VISIBLE_DEVICES" not in workers["experiments-1"].environment
        monkeypatch.delenv("BLOCKLENS_PROCESSES")


@pytest.mark.usefixtures("prefect_server")
def test_without_the_pool_there_are_no_workers() -> None:
    """A server that knows nothing of us: a sweep runs its experiments itself."""
    assert online_workers() == 0
