"""Two processes, one run: the same batches, loss and adapter as one process has."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from stages.adapters.files import read_adapter
from stages.contracts.errors import HardwareError
from stages.training.distribution import (
    World,
    gathered,
    joined_processes,
    start_processes,
    total,
    world,
)
from tests.stages.test_train import contents, params_file, write_encoded
from tests.stages.test_train import weights as weights  # a fixture

ROOT = Path(__file__).parents[2]
ROUNDING = 1e-6
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "-m")


def command(folder: Path, launcher: tuple[str, ...], manifest: Path, out: Path) -> list[str]:
    """Return the command line of stage train under a launcher; params and data are in `folder`."""
    flags = ["--params", str(folder / "params.yaml"), "--weights", str(manifest)]
    flags += ["--encoded", str(folder / "encode"), "--out", str(out)]
    return [sys.executable, *launcher, "stages.train", *flags]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process on one thread, with its states in `folder`."""
    own = {"BLOCKLENS_STATE": str(folder / "state"), "BLOCKLENS_DEVICE": "cpu"}
    return {**os.environ, **own, "BLOCKLENS_THREADS": "1", "OMP_NUM_THREADS": "1", **more}


def run(
    folder: Path, launcher: tuple[str, ...], manifest: Path, out: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the stage to its end, whatever that is."""
    return subprocess.run(
        command(folder, launcher, manifest, out),
        cwd=ROOT,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with encoded pictures and params: eight steps of three pictures."""
    write_encoded(tmp_path / "encode")
    params_file(tmp_path, batch=3)
    return tmp_path


def numbers(out: Path) -> torch.Tensor:
    """Return all of an adapter's numbers in one row."""
    pairs = read_adapter(out / "adapter.safetensors").modules.values()
    return torch.cat([matrix.flatten() for pair in pairs for matrix in (pair.down, pair.up)])


def require_equal(got: Path, expected: Path) -> None:
    """Compare two runs' outputs: equal but for the rounding of a sum."""
    history, same = (pd.read_csv(out / "history.csv") for out in (got, expected))
    pd.testing.assert_frame_equal(history, same, rtol=ROUNDING, atol=0)
    mine, other = numbers(got), numbers(expected)
    assert float((mine - other).norm() / other.norm()) < ROUNDING
    assert contents(got).keys() == contents(expected).keys()
    metrics = [json.loads((out / "metrics.json").read_text()) for out in (got, expected)]
    numbers_of, words_of = (
        [
            {name: value for name, value in each.items() if isinstance(value, str) is words}
            for each in metrics
        ]
        for words in (False, True)
    )
    assert numbers_of[0] == pytest.approx(numbers_of[1], rel=1e-4, abs=1e-6)
    assert words_of[0] == words_of[1]


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(folder: Path, weights: Path) -> None:
    """Three pictures a step on two processes, so unequal shares; losses, norms, adapter agree."""
    one = run(folder, ("-m",), weights, folder / "one")
    assert one.returncode == 0, one.stderr
    two = run(folder, ACCELERATE, weights, folder / "two")
    assert two.returncode == 0, two.stderr
    require_equal(folder / "two", folder / "one")
    assert two.stderr.count("chosen: step") == 1, "only the first process reports"


def default_interrupt() -> None:
    """Undo what a shell does to its background jobs, whose children inherit SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_killed_processes_go_on(folder: Path, weights: Path, number: signal.Signals) -> None:
    """`dvc repro` starts them through the environment; a signal saves, and one process ends it."""
    params_file(folder, batch=3, steps=40)
    undisturbed = run(folder, ("-m",), weights, folder / "one")
    assert undisturbed.returncode == 0, undisturbed.stderr
    more = {"BLOCKLENS_PROCESSES": "2", "BLOCKLENS_SAVE_EVERY_S": "0"}
    with subprocess.Popen(
        command(folder, ("-m",), weights, folder / "two"),
        cwd=ROOT,
        env=environment(folder, **more),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_interrupt,
    ) as process:
        while process.poll() is None and not list(folder.glob("state/train/*/state-*")):
            time.sleep(0.05)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode != 0, said
    assert "stopping after this step" in said
    assert not (folder / "two").exists(), said
    ended = run(folder, ("-m",), weights, folder / "two")
    assert re.search(r"continuing after step \d+ from", ended.stderr), said + ended.stderr
    require_equal(folder / "two", folder / "one")


@pytest.mark.slow
@pytest.mark.parametrize("probed", [0, 4])
def test_bad_number_in_one_process_stops_all(folder: Path, weights: Path, probed: int) -> None:
    """The others do not wait for ever: the picture is named once, and nothing is written.

    That holds for a step, which all processes take, and for a validation, which one makes.
    """
    write_encoded(folder / "encode", broken="c")
    params_file(folder, batch=3, probe_pictures=probed)
    ended = run(folder, TORCHRUN, weights, folder / "out")
    assert ended.returncode != 0
    assert "picture c, sigma" in ended.stderr
    assert "loss is nan" in ended.stderr
    assert not (folder / "out").exists()


def test_shares_are_a_partition() -> None:
    """Every sample of a step belongs to one process, in whatever number of them."""
    for size in (1, 2, 3, 7):
        shares = [World(rank, size).share(range(5)) for rank in range(size)]
        assert sorted(item for share in shares for item in share) == list(range(5))


def test_one_process_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher nothing is opened, and sums are the values themselves."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes(torch.device("cpu"), 1) as alone:
        assert alone == world() == World(0, 1)
        assert alone.leads
        assert total(0.1) == 0.1
        assert gathered(["a"]) == ["a"]


def test_idle_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs for one picture a step: said before anything is loaded."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(HardwareError, match="2 processes for 1 picture a step"),
        joined_processes(torch.device("cpu"), 1),
    ):
        pass


def test_number_of_processes_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word instead of a number is named, with the variable; one process goes on as it is."""
    monkeypatch.setenv("BLOCKLENS_PROCESSES", "two")
    with pytest.raises(SystemExit, match="BLOCKLENS_PROCESSES: got 'two'"):
        start_processes("stages.train")
    monkeypatch.setenv("BLOCKLENS_PROCESSES", "1")
    start_processes("stages.train")
