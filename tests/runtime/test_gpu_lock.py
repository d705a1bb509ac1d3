"""One job per GPU: the second process waits, whatever ends the first one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.contracts.errors import HardwareError
from stages.runtime.gpu_lock import claim, gpu_indices

ROOT = Path(__file__).parents[2]
PROGRAM = """\
import logging, subprocess, sys
from stages.runtime.gpu_lock import claim
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
claim(sys.argv[1].split(","))
print("has it", flush=True)
{then}
"""
HOLD = "sys.stdin.read()"
START_ANOTHER = "subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]], check=True)"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that claims GPUs and then goes on as told; kill it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start_one(gpus: str, then: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(then=then), gpus, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "BLOCKLENS_LOCKS": str(tmp_path / "locks")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process writes."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_the_second_process_waits_until_the_first_one_is_dead(start: Start) -> None:
    """It says for whom it waits; even kill -9 frees the GPU; another GPU is free all the time."""
    first = start("GPU-a", HOLD)
    assert line_of(first) == "has it"
    second = start("GPU-b,GPU-a", HOLD)
    said = line_of(second)
    assert said == f"GPU GPU-a is in use by process {first.pid} (-c): waiting for it to end"
    third = start("GPU-c", HOLD)
    assert line_of(third) == "has it"
    assert second.poll() is None
    first.kill()
    assert [line_of(second), line_of(second)] == ["GPU GPU-a is free", "has it"]


def test_what_a_holder_starts_shares_its_gpu(start: Start) -> None:
    """Or else a stage would wait for ever for its own workers."""
    first = start("GPU-a", START_ANOTHER, PROGRAM.format(then=""))
    output, _ = first.communicate(timeout=120)
    assert output.splitlines() == ["has it", "has it"]
    assert first.returncode == 0


def test_ctrl_c_ends_the_waiting(start: Start) -> None:
    """Someone who will not wait needs no kill -9."""
    first = start("GPU-a", HOLD)
    assert line_of(first) == "has it"
    second = start("GPU-a", HOLD)
    assert "waiting" in line_of(second)
    second.terminate()
    assert second.wait(timeout=60) != 0


def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which variable helps."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("BLOCKLENS_LOCKS", str(tmp_path / "file"))
    monkeypatch.setenv("BLOCKLENS_GPUS_HELD", "")
    with pytest.raises(HardwareError, match=r"cannot be locked: .*Set BLOCKLENS_LOCKS to a folder"):
        claim(["GPU-a"])


@pytest.mark.parametrize(
    ("name", "environment", "indices"),
    [
        ("cuda", {}, [0]),
        ("cuda:3", {"LOCAL_RANK": "1"}, [3]),
        ("cuda", {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}, [0, 1, 2]),
        ("cuda", {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}, []),
    ],
)
def test_the_first_of_several_processes_claims_for_all(
    name: str, environment: dict[str, str], indices: list[int]
) -> None:
    """Two launches that claimed one GPU at a time could wait for each other for ever."""
    assert gpu_indices(name, environment) == indices
