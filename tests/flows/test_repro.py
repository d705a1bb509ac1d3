"""One stage through DVC: what happened, and what is left when it goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import repro
from flows.graph import DVC
from flows.repro import (
    CheckoutInUseError,
    Outcome,
    StageFailedError,
    exclusive_run,
    run_stage,
)
from tests.flows.conftest import processes_with, run_dvc, wait_until

FAIL = "echo partial > alpha.txt; echo 'alpha: cannot go on' >&2; exit 1\n"


def ignore(_line: str) -> None:
    """Take a line of output and do nothing."""


def contents(project: Path) -> dict[str, str]:
    """Return what the stages of the toy project have written."""
    names = ("zeta.txt", "alpha.txt", "metrics.json", "omega.txt", "beta.txt", "dvc.lock")
    return {name: (project / name).read_text() for name in names if (project / name).exists()}


def locked_paths(project: Path) -> dict[str, object]:
    """Return the paths that DVC still holds locks on, with their holders."""
    path = project / ".dvc" / "tmp" / "rwlock"
    locks = json.loads(path.read_text() or "{}") if path.exists() else {}
    return {name: holders for mode in locks.values() for name, holders in mode.items()}


def test_outcomes_are_told_apart(finished_project: Path) -> None:
    """Unchanged, Ran and FromRunCache are what DVC says, and force runs what is unchanged."""
    assert run_stage(finished_project, "zeta", ignore) is Outcome.UNCHANGED
    (finished_project / "source.txt").write_text("second\n")
    lines: list[str] = []
    assert run_stage(finished_project, "zeta", lines.append) is Outcome.RAN
    assert "> sh copy.sh source.txt zeta.txt" in lines
    (finished_project / "source.txt").write_text("first\n")
    assert run_stage(finished_project, "zeta", ignore) is Outcome.FROM_RUN_CACHE
    assert run_stage(finished_project, "zeta", ignore, force=True) is Outcome.RAN


def test_failure_raises_the_message_and_puts_everything_back(finished_project: Path) -> None:
    """DVC deletes a stage's outputs first: a failed stage must not cost the last good ones."""
    before = contents(finished_project)
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text(FAIL)
    lines: list[str] = []
    with pytest.raises(StageFailedError) as caught:
        run_stage(finished_project, "alpha", lines.append)
    assert str(caught.value) == "alpha: cannot go on"
    assert contents(finished_project) == before
    assert lines[-1] == "alpha: the outputs of its last good run are back in place"
    (finished_project / "source.txt").write_text("first\n")
    assert "up to date" in run_dvc(finished_project, "status", "dvc.yaml")


def test_first_run_that_fails_has_nothing_to_put_back(project: Path) -> None:
    """Without a last good run a failure is a failure and no more."""
    (project / "hook.sh").write_text(FAIL)
    lines: list[str] = []
    with pytest.raises(StageFailedError, match="cannot go on"):
        run_stage(project, "alpha", lines.append)
    assert not any("put back" in line or "back in place" in line for line in lines)


def test_lost_cache_is_reported(finished_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be put back is said, and does not hide why the stage failed."""
    monkeypatch.setattr(repro, "KEPT_BYTES", 0)
    shutil.rmtree(finished_project / ".dvc" / "cache")
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text(FAIL)
    lines: list[str] = []
    with pytest.raises(StageFailedError, match="cannot go on"):
        run_stage(finished_project, "alpha", lines.append)
    said = [line for line in lines if line.startswith("alpha: its last good outputs could not")]
    assert len(said) == 1
    assert "alpha.txt" in said[0]


def test_timeout_says_so(finished_project: Path) -> None:
    """A stage that hangs ends with a message that names the hint to change."""
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text("sleep 600\n")
    with pytest.raises(StageFailedError, match=r"alpha: stopped after 4 s, its timeout_s"):
        run_stage(finished_project, "alpha", ignore, timeout_s=4)
    assert locked_paths(finished_project) == {}


def test_cancel_leaves_no_process_no_lock_and_the_last_outputs(finished_project: Path) -> None:
    """Ctrl-C in the middle of a stage leaves the checkout as if it had not been started."""
    before = contents(finished_project)
    sleeper = "600.2718281"
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text(f"echo sleeping; sleep {sleeper}\n")

    def on_line(line: str) -> None:
        if line == "sleeping":
            # A shell that is just forking loses a SIGINT.
            wait_until(lambda: bool(processes_with(sleeper)), "the stage sleeps")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(finished_project, "zeta", on_line)
    assert processes_with(sleeper) == []
    assert locked_paths(finished_project) == {}
    assert contents(finished_project) == before


def test_rerun_after_kill_succeeds(
    finished_project: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    """After kill -9 of the flow no copy of the stage runs on, and the next run does its work."""
    sleeper = "600.3141592"
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text(f"touch started; sleep {sleeper}\n")
    driver = start_python(
        "-c",
        "from pathlib import Path; from flows.repro import run_stage\n"
        "run_stage(Path.cwd(), 'zeta', print)",
        directory=finished_project,
    )
    wait_until(lambda: bool(processes_with(sleeper)), "the stage starts")
    driver.kill()
    wait_until(lambda: not processes_with(sleeper), "the guard stops the stage")
    wait_until(lambda: not processes_with("--single-item"), "the guard stops dvc")
    (finished_project / "hook.sh").unlink()
    assert run_stage(finished_project, "zeta", ignore) is Outcome.RAN
    assert (finished_project / "zeta.txt").read_text() == "second\n"


def test_stage_that_another_dvc_runs_is_left_alone(
    finished_project: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    """Putting outputs back would overwrite what the other run is writing."""
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text("touch started; sleep 600.1414213\n")
    other = start_python(*DVC[1:], "repro", "--single-item", "alpha", directory=finished_project)
    wait_until((finished_project / "started").exists, "the other dvc runs the stage")
    wanted = rf"\(PID {other.pid}\): .* is running in this checkout\. Wait for it, stop it, or use"
    with pytest.raises(CheckoutInUseError, match=f"alpha: {finished_project}: {wanted}"):
        run_stage(finished_project, "alpha", ignore)
    assert not (finished_project / "metrics.json").exists()
    with (
        pytest.raises(CheckoutInUseError, match=f"^{finished_project}: {wanted}"),
        exclusive_run(finished_project),
    ):
        pass
    other.terminate()
    for sleeper in processes_with("600.1414213"):
        subprocess.run(["kill", str(sleeper)], check=False)


def test_a_number_that_is_another_program_by_now_blocks_nobody(finished_project: Path) -> None:
    """What DVC noted before a restart of the machine refused every flow, as this process would."""
    lock = finished_project / ".dvc" / "tmp" / "rwlock"
    own = " ".join(Path("/proc/self/cmdline").read_bytes().decode().rstrip("\0").split("\0"))
    ours = f"/home/me/my dvc projects/.venv/dvc/__main__.py {own.rpartition(' ')[2]}"
    for command, refused in (("/usr/bin/dvc repro zeta", False), (own, True), (ours, True)):
        lock.write_text(json.dumps({"write": {"zeta.txt": {"pid": os.getpid(), "cmd": command}}}))
        expected = pytest.raises(CheckoutInUseError, match=f"PID {os.getpid()}")
        with expected if refused else contextlib.nullcontext(), exclusive_run(finished_project):
            pass
        assert lock.exists()  # a person's checkout is not tidied


def test_second_flow_in_a_checkout_is_refused(
    tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    """Two would go through dvc.lock side by side; one that died blocks nobody."""
    program = (
        "import sys; from pathlib import Path; from flows.repro import exclusive_run\n"
        "with exclusive_run(Path.cwd()): print('holds it'); sys.stdin.read()"
    )
    other = start_python("-c", program, stdin=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "holds it\n"
    with (
        pytest.raises(CheckoutInUseError, match="another flow is running in this checkout"),
        exclusive_run(tmp_path),
    ):
        pass
    other.kill()
    other.wait()
    with exclusive_run(tmp_path):
        pass
