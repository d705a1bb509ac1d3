"""The flow does what `dvc repro` does, and shows it in Prefect."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun

from flows import pipeline as module
from flows.artifacts import BLOCK_COLUMNS, block_rows, image_uri, metrics_markdown
from flows.pipeline import pipeline
from tests.flows.conftest import descendants, is_alive, processes_with, run_dvc, wait_until

UNCHANGED = dict.fromkeys(("zeta", "alpha", "omega", "beta"), "Unchanged")


def run_flow(project: Path, *arguments: Any) -> State[Any]:
    """Return the final state of the flow in a project."""
    here = Path.cwd()
    os.chdir(project)
    try:
        return pipeline(*arguments, return_state=True)
    finally:
        os.chdir(here)


def task_runs(state: State[Any]) -> dict[str, TaskRun]:
    """Return a flow run's task runs by name, as the API shows them."""
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        )
    return {run.name: run for run in runs}


def artifacts(state: State[Any]) -> dict[str, Any]:
    """Return a flow run's artifacts by key, as the API shows them."""
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter.model_validate({"flow_run_id": {"any_": [run_id]}})
        )
    return {artifact.key: artifact.data for artifact in found if artifact.key}


def test_prefect_server_can_be_imported() -> None:
    """A FastAPI that is too new breaks Prefect's server: the pins must hold it back."""
    assert importlib.import_module("prefect.server.api.server")


@pytest.mark.usefixtures("prefect_server")
def test_first_run_writes_the_lock_of_a_serial_repro(
    project: Path, finished_template: Path
) -> None:
    """Same entries in the same order: a pull request shows no difference between the two ways."""
    state = run_flow(project)
    assert state.is_completed(), state.message
    assert state.result() == dict.fromkeys(UNCHANGED, "Ran")
    lock = (project / "dvc.lock").read_bytes()
    assert lock == (finished_template / "dvc.lock").read_bytes()
    runs = task_runs(state)
    assert set(runs) == set(UNCHANGED)
    assert {run.state_name for run in runs.values()} == {"Ran"}
    assert not any(run.tags for run in runs.values())  # each would ask the server for a place
    names = {run.id: name for name, run in runs.items()}
    edges = {
        (names[getattr(source, "id")], name)  # noqa: B009  its type depends on the kind of input
        for name, run in runs.items()
        for source in run.task_inputs.get("wait_for", [])
    }
    assert edges == {("zeta", "omega"), ("alpha", "omega"), ("alpha", "beta")}


@pytest.mark.usefixtures("prefect_server")
def test_second_run_runs_nothing_and_leaves_artifacts(finished_project: Path) -> None:
    """DVC alone decides what to reuse; the run still shows states, metrics and pictures."""
    sheet = finished_project / "data" / "evaluate" / "sheet.png"
    report = finished_project / "data" / "report" / "index.html"
    for path in (sheet, report):
        path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 32)).save(sheet)
    report.write_text("<p>report</p>")
    lock = (finished_project / "dvc.lock").read_bytes()
    state = run_flow(finished_project)
    assert state.result() == UNCHANGED
    assert state.message == "4 Unchanged"
    assert (finished_project / "dvc.lock").read_bytes() == lock
    found = artifacts(state)
    assert set(found) == {"stages", "files", "metrics", "contact-sheet", "report"}
    assert '"state": "Unchanged"' in found["stages"]
    made = {row["path"]: row for row in json.loads(found["files"])}
    assert set(made) == {"zeta.txt", "alpha.txt", "omega.txt", "beta.txt", "metrics.json"}
    assert made["zeta.txt"]["md5"] == hashlib.md5(b"first\n").hexdigest()
    assert made["zeta.txt"]["bytes"] == len("first\n")
    assert "| metrics.json | lines | 1 |" in found["metrics"]
    assert found["contact-sheet"].startswith("data:image/jpeg;base64,")
    assert found["report"] == f"`{report.resolve()}`"


@pytest.mark.usefixtures("prefect_server")
def test_the_report_is_linked_where_it_is_served(
    finished_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page over HTTP may open no file, and in a container its path says nothing outside."""
    monkeypatch.setenv("BLOCKLENS_REPORT_URL", "http://127.0.0.1:8090")
    report = finished_project / "data" / "report" / "index.html"
    report.parent.mkdir(parents=True)
    report.write_text("<p>report</p>")
    assert artifacts(run_flow(finished_project))["report"] == "[Report](http://127.0.0.1:8090)"


@pytest.mark.usefixtures("prefect_server")
def test_failed_stage_fails_the_flow_with_its_message(
    finished_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs after a failure, earlier outputs stay, and only hinted stages are retried."""
    monkeypatch.setattr(module, "RETRY_BACKOFF_S", 0)
    (finished_project / "source.txt").write_text("second\n")
    hook = 'if [ "$2" = alpha.txt ]; then echo x >> tries; echo "alpha: no way" >&2; exit 1; fi\n'
    (finished_project / "hook.sh").write_text(hook)
    state = run_flow(finished_project)
    assert state.is_failed()
    assert state.message == "alpha: no way"
    assert (finished_project / "tries").read_text() == "x\n" * 2
    assert (finished_project / "zeta.txt").read_text() == "second\n"
    assert (finished_project / "alpha.txt").read_text() == "first\n"
    assert (finished_project / "omega.txt").read_text() == "first\nfirst\n"
    runs = task_runs(state)
    assert set(runs) == {"zeta", "alpha"}
    assert runs["alpha"].state is not None
    assert runs["alpha"].state.message == "alpha: no way"
    left = artifacts(state)
    assert left["stages"].count('"state": "NotRun"') == 2
    assert [row["path"] for row in json.loads(left["files"])] == ["zeta.txt"]


@pytest.mark.usefixtures("prefect_server")
def test_unknown_target_fails_with_the_message_of_dvc(finished_project: Path) -> None:
    """A misspelt stage is refused before anything runs."""
    state = run_flow(finished_project, ["gamma"])
    assert state.is_failed()
    assert "gamma" in (state.message or "")
    assert task_runs(state) == {}


def test_blocks_are_left_with_the_largest_share_first() -> None:
    """Who asks for a run's blocks gets those that matter at the top, all of them, as in the CSV."""
    root = Path(__file__).parents[2]
    rows = block_rows(root)
    shares = [float(row["share"]) for row in rows]
    assert len(rows) == 57
    assert shares == sorted(shares, reverse=True)
    assert set(rows[0]) == set(BLOCK_COLUMNS)


def test_metrics_show_their_change_since_the_commit(finished_project: Path) -> None:
    """A reviewer sees what a run changed; without metrics there is no artifact."""
    (finished_project / "metrics.json").write_text('{"lines": 3}')
    text = metrics_markdown(finished_project)
    assert "| metrics.json | lines | 3 |" in text
    change = [line.replace(" ", "") for line in text.splitlines() if "lines" in line][-1]
    assert change == "|metrics.json|lines|1|3|2|"


def test_metrics_need_no_commit(finished_project: Path) -> None:
    """Someone who unpacked an archive gets the table without the comparison."""
    shutil.rmtree(finished_project / ".git")
    subprocess.run(["git", "init", "--quiet"], cwd=finished_project, check=True)
    assert "Change" not in metrics_markdown(finished_project)


def test_picture_fits_into_the_database(tmp_path: Path) -> None:
    """A sheet of noise, which no codec makes small, ends below 200 kB all the same."""
    path = tmp_path / "sheet.png"
    Image.effect_noise((1500, 1500), 100).save(path)
    assert 1000 < len(image_uri(path)) <= 200_000


def start_flow(
    start_python: Callable[..., subprocess.Popen[str]], project: Path, *arguments: str
) -> subprocess.Popen[str]:
    """Start the command line in a project, with Prefect's home where it is by default."""
    program = (
        "import os, sys, runpy\n"
        "os.environ.pop('PREFECT_HOME', None); os.environ.pop('PREFECT_API_URL', None)\n"
        "sys.argv[0] = 'flows.pipeline'; runpy.run_module('flows.pipeline', run_name='__main__')"
    )
    return start_python("-c", program, *arguments, directory=project)


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home for several runs: only the first one has to make the database."""
    return tmp_path_factory.mktemp("prefect-home")


@pytest.mark.slow
def test_command_line_needs_no_server(
    finished_project: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    """The command shows what stages write, ends with their message, and with exit code 1."""
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text("echo live line; echo 'zeta: no way' >&2; exit 1\n")
    flow = start_flow(start_python, finished_project, "zeta")
    output, _ = flow.communicate(timeout=1200)
    assert "live line" in output
    assert "Traceback" not in output
    assert "NoneType" not in output
    assert output.splitlines()[-1] == "zeta: no way"
    assert flow.returncode == 1
    assert (finished_project / ".blocklens" / "prefect" / "prefect.db").exists()
    assert processes_with(str(finished_project)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_flow_stage_and_server(
    finished_project: Path,
    prefect_home: Path,
    start_python: Callable[..., subprocess.Popen[str]],
    number: signal.Signals,
) -> None:
    """Ctrl-C, a supervisor's SIGTERM and kill -9 leave no stage and no server."""
    sleeper = f"600.{time.time_ns()}"
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text(f"sleep {sleeper}\n")
    home = finished_project / ".blocklens" / "prefect"
    home.parent.mkdir()
    home.symlink_to(prefect_home)
    flow = start_flow(start_python, finished_project, "zeta")
    wait_until(lambda: bool(processes_with(sleeper)), "the stage starts", 1200)
    family = descendants(flow.pid)
    assert len(family) >= 6, "guard and server, guard, dvc, shell and sleep"
    if number is signal.SIGINT:
        os.killpg(flow.pid, number)  # as a terminal does
    else:
        flow.send_signal(number)
    flow.communicate(timeout=100)
    wait_until(lambda: not any(map(is_alive, family)), "stage and server end", 60)
    (finished_project / "hook.sh").unlink()
    run_dvc(finished_project, "repro", "zeta")
    assert (finished_project / "zeta.txt").read_text() == "second\n"
