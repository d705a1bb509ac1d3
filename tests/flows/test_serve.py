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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from playwright.sync_api import expect
from prefect.events.schemas.events import ResourceSpecification
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import processes as processes_module
from flows.experiments.fan_out import POOL as EXPERIMENTS
from flows.left_runs import crash_unbegun, crash_zombies, end_left_runs
from flows.registration import POOL
from flows.serve import HEARTBEAT_S, WORKER_GRACE_S, Command, ServeError, _wait, serve
from flows.worker_clone import PATIENCE_S
from tests.browser import CHROMIUM, keep_screenshot, open_page
from tests.flows.conftest import descendants, is_alive, run_dvc, wait_until
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
    assert document["pull"] == [{"flows.worker_clone.update_own_clone": {}}]
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
    assert automation.trigger.within.total_seconds() >= 3 * HEARTBEAT_S
    assert "prefect.flow-run.Completed" in automation.trigger.expect


def test_a_run_that_waits_for_another_to_save_is_left_alone() -> None:
    """It has not begun all that while, as one whose worker died."""
    automation = crash_unbegun((POOL,))
    assert automation.trigger.within.total_seconds() >= PATIENCE_S + 5 * 60
    assert "prefect.flow-run.Running" in automation.trigger.expect


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
    with open_page(api, complaints, keep=folder) as page:
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
time.sleep(float(sys.argv[2]))
Path(sys.argv[1], "saved").write_text(str(len(signals)))
sys.exit(130)
"""


def let_a_stage_save(source: Path, folder: Path, saving_s: float) -> None:
    """Commit a change whose first run goes on until a signal, and saves; the next ones just run."""
    (source / "saving.py").write_text(SAVING)
    save = f'exec "{sys.executable}" "$PWD/saving.py" "{folder}" {saving_s}'
    (source / "hook.sh").write_text(f'test -e "{folder}/saved" || {save}\n')
    (source / "source.txt").write_text("third\n")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", "slow to save")
    wait_until((folder / "started").exists, "the stage never ran", LIMIT_S)


def serial_lock(source: Path, folder: Path) -> str:
    """Return the dvc.lock that a serial `dvc repro` of the same commit writes, from nothing."""
    shutil.copytree(source, folder, symlinks=True)
    git(folder, "checkout", "--quiet", "--force", "HEAD")
    run_dvc(folder, "repro", "--quiet", "--force")
    return (folder / "dvc.lock").read_text().rstrip()


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGKILL])
def test_an_impatient_person_loses_nothing(
    served: tuple[Path, str, int], tmp_path: Path, second: signal.Signals
) -> None:
    """Ctrl-C and, while a stage saves, Ctrl-C again or a kill: it saves to its end, told once."""
    source, _, pid = served
    let_a_stage_save(source, tmp_path, 8)
    deadline = time.monotonic() + LIMIT_S
    processes = descendants(pid)
    os.kill(pid, signal.SIGINT)
    time.sleep(2.0)
    os.kill(pid, second)
    while any(is_alive(each) for each in processes):
        assert time.monotonic() < deadline, "left running"
        time.sleep(0.2)
    assert (tmp_path / "saved").read_text() == "1"


@pytest.mark.slow
def test_the_next_run_waits_for_a_cancelled_one_to_save(
    served: tuple[Path, str, int], tmp_path: Path
) -> None:
    """Prefect kills a cancelled flow after 30 s and starts the next: it was refused, and failed."""
    source, api, _ = served
    let_a_stage_save(source, tmp_path, 50)
    (run,) = wait_for_runs(api, "nightly", "RUNNING", 1)
    state = {"state": {"type": "CANCELLING"}}
    post(f"{api}/api/flow_runs/{run['id']}/set_state", state)
    wait_for_runs(api, "nightly", "CANCELLED", 1)
    assert not (tmp_path / "saved").exists()
    wait_for_runs(api, "nightly", "COMPLETED", 1)  # and none that failed
    assert (tmp_path / "saved").read_text() == "1"
    assert git(source, "show", "nightly:dvc.lock") == serial_lock(source, tmp_path / "serial")


def test_a_worker_has_longer_than_its_flow_gives_a_stage() -> None:
    """It was killed after a minute, when a training may take a quarter of an hour to save."""
    assert WORKER_GRACE_S > processes_module.STAGE_GRACE_S + processes_module.GUARD_GRACE_S


TOGETHER = """\
import signal, sys, time
from pathlib import Path
folder, own, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
signals = []
signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
(folder / f"{own}-started").touch()
while not signals:
    time.sleep(0.05)
(folder / f"{own}-told").touch()
deadline = time.monotonic() + 20
while not (folder / f"{other}-told").exists() and time.monotonic() < deadline:
    time.sleep(0.05)
if time.monotonic() < deadline:
    (folder / f"{own}-together").touch()
"""


def test_workers_are_told_at_once_to_stop(tmp_path: Path) -> None:
    """Each waits here until the other has been told: one after the other, the first would not."""
    (tmp_path / "worker.py").write_text(TOGETHER)
    program = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path)]
    ends = (
        f"cd {tmp_path}; until test -e first-started -a -e second-started; do sleep 0.1; done; "
        "exit 3"
    )
    commands = {
        "worker": Command(("sh", "-c", ends), os.environ, None),
        "first": Command((*program, "first", "second"), os.environ, None),
        "second": Command((*program, "second", "first"), os.environ, None),
    }
    with ExitStack() as stack:
        running = {name: stack.enter_context(each.start()) for name, each in commands.items()}
        with pytest.raises(ServeError, match="worker ended with exit code 3"):
            _wait(running, commands, stack)
    assert sorted(path.name for path in tmp_path.glob("*-together")) == [
        "first-together",
        "second-together",
    ]


def post(url: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request; 503 is a busy database, and asked again, as by a client."""
    deadline = time.monotonic() + LIMIT_S
    while (answer := httpx2.post(url, json=content, timeout=LIMIT_S)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
        time.sleep(1.0)
    answer.raise_for_status()
    return dict(answer.json()) if answer.content else {}


def leases(api: str, home: Path) -> list[Path]:
    """Take a slot as a client of the server does, and return the files that hold the lease."""
    limit = {"name": "test", "limit": 1, "active": True}
    post(f"{api}/api/v2/concurrency_limits/", limit)
    taken = post(
        f"{api}/api/v2/concurrency_limits/increment-with-lease",
        {"slots": 1, "names": ["test"], "mode": "concurrency"},
    )
    return list(home.glob(f"concurrency_leases/{taken['lease_id']}.json"))


SILENT = """\
import sys, time
from pathlib import Path
from prefect import flow

@flow(flow_run_name="silent")
def silent():
    Path(sys.argv[1]).touch()
    time.sleep(600)

silent()
"""


def is_heard_of(api: str) -> bool:
    """Return whether the server has a heartbeat of a run named silent."""
    wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
    events = httpx2.post(f"{api}/api/events/filter", json=wanted).json()["events"]
    return any(event["resource"].get("prefect.resource.name") == "silent" for event in events)


def silent_runs_are_crashed(api: str, folder: Path) -> None:
    """The server itself ends a run that was killed, and one that was taken and never began."""
    with temporary_settings({PREFECT_API_URL: f"{api}/api"}):
        for automation in (crash_zombies(10), crash_unbegun((POOL,), 10)):
            automation.name += ": these two, soon"
            automation.trigger.match = ResourceSpecification(
                {"prefect.resource.id": "prefect.flow-run.*", "prefect.resource.name": "silent"}
            )
            automation.create()
    (folder / "silent.py").write_text(SILENT)
    environment = {**os.environ, "PREFECT_API_URL": f"{api}/api"}
    environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(HEARTBEAT_S)
    command = [sys.executable, str(folder / "silent.py"), str(folder / "silent")]
    with subprocess.Popen(command, env=environment) as process:
        wait_until((folder / "silent").exists, "the run never began", LIMIT_S)
        wait_until(lambda: is_heard_of(api), "it sends no heartbeat", LIMIT_S)
        process.kill()
    deployment = httpx2.get(f"{api}/api/deployments/name/nightly/nightly").json()["id"]
    taken = {"name": "silent", "state": {"type": "PENDING"}}
    post(f"{api}/api/deployments/{deployment}/create_flow_run", taken)

    def messages() -> list[str]:
        wanted = {"flow_runs": {"name": {"any_": ["silent"]}}}
        runs = httpx2.post(f"{api}/api/flow_runs/filter", json=wanted).json()
        return sorted(run["state"]["message"] for run in runs if run["state_type"] == "CRASHED")

    wait_until(lambda: len(messages()) == 2, "they are not crashed", LIMIT_S)
    assert "No sign of life for 10 s" in messages()[0]
    assert "not begun after 10 s" in messages()[1]


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
    # In memory, Prefect's default, a restart of the server would forget who holds a slot.
    assert len(leases(api, tmp_path / "prefect")) == 1
    assert git(source, "show", "nightly:dvc.lock") == serial_lock(source, tmp_path / "serial")
    silent_runs_are_crashed(api, tmp_path)
    work_from_elsewhere(source, api, tmp_path)
    # If it had just taken a run, it would end that first when it came back; it does not.
    end_left_runs(f"{api}/api", [str(tmp_path / "other")])
    # It registered the same deployments, and they are still about each worker's own clone.
    elsewhere = git(tmp_path / "other", "rev-parse", "HEAD")
    git(source, "commit", "--quiet", "--allow-empty", "--message", "third")
    head = git(source, "rev-parse", "HEAD")
    wait_until(
        lambda: git(tmp_path / "worker", "rev-parse", "HEAD") == head,
        "the first worker's clone is not used any more",
        LIMIT_S,
    )
    assert git(tmp_path / "other", "rev-parse", "HEAD") == elsewhere
    assert git(source, "status", "--porcelain") == ""
    processes = descendants(pid)
    assert processes
    os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + 120
    while any(is_alive(each) for each in processes):
        assert time.monotonic() < deadline, "left running after Ctrl-C"
        time.sleep(0.2)
