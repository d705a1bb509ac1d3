"""Progress says what is done, what is left, and what the loop has to add."""

from __future__ import annotations

import logging

import pytest
import torch

from stages.runtime.device import configure_torch
from stages.runtime.progress import track


def test_log_ends_with_the_detail(caplog: pytest.LogCaptureFixture) -> None:
    """In a log the last item always has its line; without a detail nothing follows the time."""
    seen: dict[str, int] = {}
    with caplog.at_level(logging.INFO):
        for item in track([1, 2], 2, "train", lambda: f"loss 0.{seen['last']}"):
            seen["last"] = item
        list(track([1], 1, "render"))
    assert caplog.messages == ["train: 2 of 2, 0 s left, loss 0.2", "render: 1 of 1, 0 s left"]


def test_every_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's LOCAL_RANK chooses the GPU, and a device that was named stays."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cuda")
    assert configure_torch() == torch.device("cuda:1")
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cpu")
    assert configure_torch() == torch.device("cpu")
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cuda:0")
    assert configure_torch() == torch.device("cuda:0")
