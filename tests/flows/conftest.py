"""Toy DVC projects, and one temporary Prefect server for all tests of a session."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "PREFECT_HOME" not in os.environ:  # before prefect is imported, which reads it
    os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="blocklens-prefect-")
    atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)

import flows.environment
from flows.graph import DVC
from tests.repositories import git

# isort: split
from prefect.testing.utilities import prefect_test_harness

ROOT = Path(__file__).parents[2]

# A shell starts background jobs with SIGINT ignored, and the flows under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

TOY = """\
stages:
  # Neither in the order of names nor of the graph: the plan must come from DVC.
  zeta:
    cmd: sh copy.sh source.txt zeta.txt
    deps: [source.txt]
    outs: [zeta.txt]
  alpha:
    cmd: sh copy.sh source.txt alpha.txt && echo '{"lines":1}' > metrics.json
    deps: [source.txt]
    outs: [alpha.txt]
    metrics: [{metrics.json: {cache: false}}]
    meta: {prefect: {retries: 1, timeout_s: 60}}
  omega:
    cmd: cat zeta.txt alpha.txt > omega.txt
    deps: [zeta.txt, alpha.txt]
    outs: [omega.txt]
  beta:
    cmd: cat alpha.txt raw.bin > beta.txt
    deps: [alpha.txt, raw.bin]
    outs: [beta.txt]
"""
COPY = 'cat "$1" > "$2"\nif [ -f hook.sh ]; then . ./hook.sh; fi\n'
"""hook.sh is no dependency: a test makes it to let a stage fail or sleep."""


def run_dvc(project: Path, *arguments: str) -> str:
    """Return what a DVC command printed; its failure is a failure of the test."""
    done = subprocess.run(
        [*DVC, *arguments],
        cwd=project,
        env=flows.environment.child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy project of four stages that never ran, beside a tracked file and another pipeline."""
    folder = tmp_path_factory.mktemp("template")
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    run_dvc(folder, "init", "--quiet")
    (folder / "dvc.yaml").write_text(TOY)
    (folder / "copy.sh").write_text(COPY)
    (folder / "source.txt").write_text("first\n")
    (folder / "raw.bin").write_text("raw\n")
    run_dvc(folder, "add", "--quiet", "raw.bin")
    (folder / "other").mkdir()
    (folder / "other" / "dvc.yaml").write_text("stages: {x: {cmd: echo > x, outs: [x]}}\n")
    return folder


@pytest.fixture(scope="session")
def finished_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project after a serial `dvc repro`, committed."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(template, folder)
    run_dvc(folder, "repro", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "toy")
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    """A toy project that never ran."""
    return shutil.copytree(template, tmp_path / "project", symlinks=True)


@pytest.fixture
def finished_project(finished_template: Path, tmp_path: Path) -> Path:
    """A toy project in which nothing is left to do."""
    return shutil.copytree(finished_template, tmp_path / "project", symlinks=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A temporary Prefect server with a database of its own."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python program in a session of its own, and kill it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *arguments: str, directory: Path = tmp_path, stdin: int | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    """Wait until a condition holds; fail the test with `what` if it does not come to hold."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s} s in vain: {what}"
        time.sleep(0.05)


def processes_with(text: str) -> list[int]:
    """Return the ids of processes, zombies left out, that have `text` in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if text.encode() in command:
            found.append(int(folder.name))
    return found


def descendants(ancestor: int) -> set[int]:
    """Return the ids of the processes that a process started, directly or not."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {ancestor}


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
