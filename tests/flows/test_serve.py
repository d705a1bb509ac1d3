"""Server, worker and deployments on this machine: a schedule fires, and a signal ends it all."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from playwright.sync_api import expect

from flows import processes as processes_module
from flows.experiments.fan_out import POOL as EXPERIMENTS
from flows.left_runs import crash_zombies
from flows.serve import POOL, WORKER_GRACE_S, ServeError, serve
from tests.browser import CHROMIUM, keep_screenshot, open_page
from tests.flows.conftest import descendants, is_alive, run_dvc
from tests.repositories import git

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_deployment_names_a_flow_of_ours() -> None:
    """prefect.yaml has no check of its own: entry points, the pool, and no concurrency limit."""
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    names = [deployment["name"] for deployment in document["deployments"]]
    assert names == ["on-demand", "nightly", "focus", "sweep", "experiment"]
    for deployment in document["deployments"]:
        file, _, function = deployment["entrypoint"].partition(":")
        assert f"\ndef {function}(" in (ROOT / file).read_text(encoding="utf-8")
        single = deployment["name"] == "experiment"  # else a sweep would wait for its own slot
        assert deployment["work_pool"] == {"name": EXPERIMENTS if single else POOL}
        assert ("pull" in deployment) is single
        assert "concurrency_limit" not in deployment


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Prefect itself would fail in its log, after a minute."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} is taken"):
            serve(tmp_path, tmp_path / "clone", port)
    assert not (tmp_path / "clone").exists()


def test_a_run_without_heartbeats_is_crashed() -> None:
    """The automation waits for several heartbeats, and every end of a run stops the waiting."""
    automation = crash_zombies()
    assert automation.trigger.within.total_seconds() >= 3 * 60
    assert "prefect.flow-run.Completed" in automation.trigger.expect


@pytest.fixture
def served(finished_project: Path, tmp_path: Path) -> Iterator[tuple[Path, str, int]]:
    """A toy project with our flows, served: its folder, the API's address, the process."""
    source = finished_project
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    document["deployments"][1]["schedules"] = [{"interval": 20.0, "active": True}]
    (source / "prefect.yaml").write_text(yaml.safe_dump(document))
    shutil.copytree(ROOT / "flows", source / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    with (source / ".gitignore").open("a", encoding="utf-8") as ignored:
        ignored.write("__pycache__/\n")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", "flows")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.serve", "--port", str(port), "--clone", "../worker"],
        cwd=source,
        env={
            **os.environ,
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PYTHONPATH": str(ROOT),
            "PREFECT_API_URL": "",
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = ""
    while "Prefect: http" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    yield source, f"http://127.0.0.1:{port}", process.pid
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for_runs(api: str, deployment: str, state: str, count: int) -> list[dict[str, Any]]:
    """Return the runs of a deployment in a state, once there are so many."""
    deadline = time.monotonic() + LIMIT_S
    wanted = {"deployments": {"name": {"any_": [deployment]}}}
    while True:
        runs = httpx2.post(f"{api}/api/flow_runs/filter", json=wanted).json()
        found = [run for run in runs if run["state"]["type"] == state]
        if len(found) >= count:
            return found
        ended = [run["state"] for run in runs if run["state"]["type"] in ("FAILED", "CRASHED")]
        assert not ended, ended
        assert time.monotonic() < deadline, [run["state"] for run in runs]
        time.sleep(1.0)


def shows_the_run(api: str, run: dict[str, Any], folder: Path) -> None:
    """In a browser the run's page has its name and state, and asks nobody but the server."""
    if not CHROMIUM and not os.environ.get("BLOCKLENS_REQUIRE_BROWSER"):
        return  # the rest of the test needs no browser
    complaints: list[str] = []
    with open_page(api, complaints) as page:
        page.goto(f"{api}/runs/flow-run/{run['id']}")
        expect(page.get_by_text(run["name"]).first).to_be_visible(timeout=60_000)
        expect(page.get_by_text("Completed").first).to_be_visible(timeout=60_000)
        keep_screenshot(page, folder, "run.png")
    # Prefect's own page asks its own server for two things that are not there.
    assert [said for said in complaints if said.startswith("asks elsewhere")] == []


def work_from_elsewhere(source: Path, api: str, tmp_path: Path) -> None:
    """Another worker of that server, as a container starts it: well, in its pool, and stopped."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.serve", "--server", f"{api}/api", "--clone", "../other"],
        cwd=source,
        env={
            **os.environ,
            "PREFECT_HOME": str(tmp_path / "prefect-elsewhere"),
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + LIMIT_S
    try:
        while not answers(f"http://127.0.0.1:{port}/health") or online_workers(api) < 2:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert f"working for {api}/api" in said
    assert "stopped" in said


def online_workers(api: str) -> int:
    """Return how many workers of the pool the server has heard of lately."""
    address = f"{api}/api/work_pools/blocklens/workers/filter"
    workers = httpx2.post(address, json={}, timeout=LIMIT_S).json()
    return len([each for each in workers if each["status"] == "ONLINE"])


def answers(url: str) -> bool:
    """Return whether there is a 200 at an address."""
    try:
        return httpx2.get(url, timeout=LIMIT_S).status_code == 200
    except httpx2.HTTPError:
        return False


SAVING = """\
import signal, sys, time
from pathlib import Path
signals = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: signals.append(number))
Path(sys.argv[1], "started").touch()
while not signals:
    time.sleep(0.05)
time.sleep(8)
Path(sys.argv[1], "saved").write_text(str(len(signals)))
sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGKILL])
def test_an_impatient_person_loses_nothing(
    served: tuple[Path, str, int], tmp_path: Path, second: signal.Signals
) -> None:
    """Ctrl-C and, while a stage saves, Ctrl-C again or a kill: it saves to its end, told once."""
    source, _, pid = served
    (source / "saving.py").write_text(SAVING)
    (source / "hook.sh").write_text(f'exec "{sys.executable}" "$PWD/saving.py" "{tmp_path}"\n')
    (source / "source.txt").write_text("third\n")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", "slow to save")
    deadline = time.monotonic() + LIMIT_S
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline, "the stage never ran"
        time.sleep(0.2)
    processes = descendants(pid)
    os.kill(pid, signal.SIGINT)
    time.sleep(2.0)
    os.kill(pid, second)
    while any(is_alive(each) for each in processes):
        assert time.monotonic() < deadline, "left running"
        time.sleep(0.2)
    assert (tmp_path / "saved").read_text() == "1"


def test_a_worker_has_longer_than_its_flow_gives_a_stage() -> None:
    """It was killed after a minute, when a training may take a quarter of an hour to save."""
    assert WORKER_GRACE_S > processes_module.STAGE_GRACE_S + processes_module.GUARD_GRACE_S


@pytest.mark.slow
def test_a_schedule_fires_and_a_signal_stops_everything(
    served: tuple[Path, str, int], tmp_path: Path
) -> None:
    """Scheduled, run in the worker's clone, completed, with artifacts and a page; then Ctrl-C."""
    source, api, pid = served
    (source / "source.txt").write_text("second\n")
    git(source, "commit", "--quiet", "--all", "--message", "second")
    runs = wait_for_runs(api, "nightly", "COMPLETED", 1)
    assert all(run["auto_scheduled"] for run in runs)
    found = httpx2.post(f"{api}/api/artifacts/filter", json={}).json()
    assert {"stages", "metrics"} <= {artifact["key"] for artifact in found}
    page = httpx2.get(f"{api}/deployments", headers={"Accept": "text/html"})
    assert page.status_code == 200
    shows_the_run(api, runs[0], tmp_path)
    work_from_elsewhere(source, api, tmp_path)
    assert (tmp_path / "worker/omega.txt").exists()
    assert git(source, "status", "--porcelain") == ""
    processes = descendants(pid)
    assert processes
    os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + 120
    while any(is_alive(each) for each in processes):
        assert time.monotonic() < deadline, "left running after Ctrl-C"
        time.sleep(0.2)
    run_dvc(tmp_path / "worker", "status")
