"""The history of a run, while it goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from stages.contracts.tables import HISTORY, read_table
from stages.training.history import history_table
from stages.training.live import HISTORY_NAME
from stages.training.loop import Pictures, Run, train_adapter

MakeRun = Callable[..., Run]


def test_history_can_be_read_while_the_run_goes_on(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After each measurement it is the whole table; its place is said once."""
    seen: list[int] = []
    run = make_run()

    def draw() -> Pictures:
        if (tmp_path / HISTORY_NAME).exists():
            seen.append(int(read_table(HISTORY, tmp_path / HISTORY_NAME)["step"].max()))
        return run.draw_samples()

    with caplog.at_level(logging.INFO):
        journal = train_adapter(replace(run, draw_samples=draw), tmp_path)
    assert seen == [2, 4], "pictures are drawn after steps 3 and 6, losses measured every second"
    assert caplog.text.count(HISTORY_NAME) == 1
    whole = read_table(HISTORY, tmp_path / HISTORY_NAME)
    pd.testing.assert_frame_equal(whole, history_table(journal), rtol=1e-7)
    assert not list(tmp_path.glob("*.partial"))


def test_history_is_there_with_every_state(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed in step 6 left a history of all the steps that it goes on from."""
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", "0")
    with pytest.raises(RuntimeError, match="killed"):
        train_adapter(make_run(dies_at=3), tmp_path)
    assert max(tmp_path.glob("state-*")).name.startswith("state-00000005-")
    assert read_table(HISTORY, tmp_path / HISTORY_NAME)["step"].tolist() == [0, 1, 2, 3, 4, 5]
