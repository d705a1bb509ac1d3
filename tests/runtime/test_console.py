"""A stage's command line: one message and exit code 1 when the input is at fault."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

SCRIPT = """
import time
from stages.contracts.errors import DatasetError, Problem
from stages.runtime.console import run_stage

def prepare(params, *, images, out):
    '''Check pictures.'''
    print(params.size_px, images, out, flush=True)
    if str(images) == "bad":
        raise DatasetError("No good", [Problem("a.png", "empty", "Replace it.")])
    if str(images) == "slow":
        time.sleep(60)

run_stage(prepare, sections=("prepare",), paths=("images", "out"))
"""


def command(images: str, *more: str) -> list[str]:
    """Return the command line of a small stage."""
    return [sys.executable, "-c", SCRIPT, "--images", images, "--out", "there", *more]


def run(images: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the small stage from the repository's root."""
    return subprocess.run(command(images, *more), cwd=ROOT, capture_output=True, text=True)


def test_sections_and_paths_reach_the_function() -> None:
    """Params come from params.yaml, paths from flags."""
    done = run("here")
    assert (done.returncode, done.stdout.split()) == (0, ["1024", "here", "there"])


def test_bad_input_is_one_message_without_traceback() -> None:
    """The person sees what is wrong and what to do, nothing of ours."""
    done = run("bad")
    assert done.returncode == 1
    assert "a.png: empty. Replace it." in done.stderr
    assert "Traceback" not in done.stderr


def test_misspelt_parameter_stops_before_the_stage(tmp_path: Path) -> None:
    """The function is not even called."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("size_px: 1024", "sizepx: 1024"))
    done = run("here", "--params", str(tmp_path / "params.yaml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "prepare.sizepx: unknown key. Did you mean 'size_px'?" in done.stderr


def test_sigterm_ends_the_stage_at_once() -> None:
    """Cancelling a run frees the GPU."""
    with subprocess.Popen(command("slow"), cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_a_parent_that_dies_during_the_imports_ends_the_stage(tmp_path: Path) -> None:
    """Killed in the seconds before a stage can ask for the signal, `dvc` left it running alone."""
    started, go = tmp_path / "started", tmp_path / "go"
    slow_import = (
        "import stages, time; from pathlib import Path\n"
        f"Path({str(started)!r}).touch()\n"
        f"while not Path({str(go)!r}).exists(): time.sleep(0.02)\n"
    )
    child = [sys.executable, "-c", slow_import + SCRIPT, "--images", "here", "--out", "there"]
    parent = f"import subprocess; subprocess.run({child!r})"
    with subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        go.touch()
        assert process.stdout is not None
        assert process.stdout.read() == b""  # until the stage has ended, too


def test_a_stage_waits_for_another_process_that_is_at_it(tmp_path: Path) -> None:
    """Two at once would take each other's state and half-written output away."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command("slow"), cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with subprocess.Popen(
            command("here"),
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as second:
            assert second.stderr is not None
            assert b"another process is still at it" in second.stderr.readline()
            first.kill()
            assert second.communicate()[0].split() == [b"1024", b"here", b"there"]
