"""Progress says what is done, what is left, and what the loop has to add."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.contracts.errors import HardwareError
from stages.runtime import device
from stages.runtime.device import configure_torch, resident_bytes
from stages.runtime.environment import number_problems
from stages.runtime.progress import track

ROOT = Path(__file__).parents[2]


def test_log_ends_with_the_detail(caplog: pytest.LogCaptureFixture) -> None:
    """In a log the last item always has its line; without a detail nothing follows the time."""
    seen: dict[str, int] = {}
    with caplog.at_level(logging.INFO):
        for item in track([1, 2], 2, "train", lambda: f"loss 0.{seen['last']}"):
            seen["last"] = item
        list(track([1], 1, "render"))
    assert caplog.messages == ["train: 2 of 2, 0 s left, loss 0.2", "render: 1 of 1, 0 s left"]


def test_of_several_processes_one_shows_progress(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight bars on a terminal overwrite one another."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.INFO):
        assert list(track([1, 2], 2, "train")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert caplog.messages == []
    monkeypatch.setenv("RANK", "0")
    assert list(track([1, 2], 2, "train")) == [1, 2]
    assert "train: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["30s", "", "-1", "nan", "inf"])
def test_a_duration_is_a_number_of_seconds(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no time to wait for is refused; zero saves after every step."""
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", seconds)
    assert [problem.what for problem in number_problems()] == ["is no number of seconds"]
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", "0")
    assert number_problems() == []


def test_a_number_that_is_none_is_named_before_anything_runs() -> None:
    """Else it were a traceback after the model was loaded, which takes minutes."""
    environment = {**os.environ, "BLOCKLENS_SAVE_EVERY_S": "30s", "BLOCKLENS_THREADS": "2x"}
    flags = ["--images", "x", "--validation", "x", "--out", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "stages.prepare", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "BLOCKLENS_SAVE_EVERY_S=30s: is no number of seconds" in done.stderr
    assert "BLOCKLENS_THREADS=2x: is no number of threads" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_matrix_and_no_convolution_is_rounded_to_tf32() -> None:
    """The VAE is float32; torch rounds its convolutions on newer GPUs unless it is told not to."""
    configure_torch()
    assert torch.backends.cuda.matmul.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is False


def test_a_run_on_the_cpu_shows_the_memory_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU, which then holds nothing of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cpu")
    assert resident_bytes() > 10_000_000


def test_every_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's LOCAL_RANK chooses the GPU, and a device that was named stays."""
    monkeypatch.setattr(device, "check_environment", lambda: None)  # no GPU is needed here
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cuda")
    assert configure_torch() == torch.device("cuda:1")
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cpu")
    assert configure_torch() == torch.device("cpu")
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cuda:0")
    assert configure_torch() == torch.device("cuda:0")


def test_a_driver_of_other_machines_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the workers' device, and says how many threads they compute with."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cuda")
    monkeypatch.setenv("BLOCKLENS_THREADS", "3")
    assert device.cpu_threads() == 3


def test_a_device_that_is_not_here_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch would say so in a traceback, after the weights were read."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("BLOCKLENS_THREADS", "many")
    for asked, said in (("cuda:1", "sees 0 CUDA devices"), ("gpu", "is no device")):
        monkeypatch.setenv("BLOCKLENS_DEVICE", asked)
        with pytest.raises(HardwareError) as caught:
            configure_torch()
        assert f"BLOCKLENS_DEVICE={asked}: " in str(caught.value)
        assert said in str(caught.value)
        assert "BLOCKLENS_THREADS=many: is no number" in str(caught.value)
