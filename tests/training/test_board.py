"""TensorBoard's event files, read back with its own reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stages.contracts.errors import HardwareError
from stages.training import board
from stages.training.board import BOARD_FOLDER, SMOOTHED_STEPS, require_board
from stages.training.loop import Run, train_adapter
from stages.training.state import Journal

MakeRun = Callable[..., Run]
STEPS = [1, 2, 3, 4, 5, 6]


def events(folder: Path) -> EventAccumulator:
    """Return all that TensorBoard shows of a run."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def curve(found: EventAccumulator, tag: str) -> dict[int, float]:
    """Return a curve by step, and fail where a step has two points."""
    points = {event.step: event.value for event in found.Scalars(tag)}
    assert len(points) == len(found.Scalars(tag)), f"{tag} has two points for a step"
    return points


def require_whole(folder: Path, journal: Journal) -> None:
    """Fail unless every step and measurement of the journal is shown, once."""
    found = events(folder)
    losses = {row.step: row.loss for row in journal.history if row.loss is not None}
    assert curve(found, "loss/step") == {k: np.float32(v) for k, v in losses.items()}
    mean = sum(losses[step] for step in STEPS) / len(STEPS)
    assert len(STEPS) < SMOOTHED_STEPS
    assert curve(found, "loss/smoothed")[6] == pytest.approx(mean, rel=1e-6)
    for tag in ("step/learning rate", "step/gradient norm"):
        assert list(curve(found, tag)) == STEPS
    for tag in ("held out", "held out, low noise", "held out, high noise", "training pictures"):
        assert list(curve(found, f"fixed points/{tag}")) == [0, 2, 4, 6]
    assert [event.step for event in found.Images("samples/0")] == [0, 3, 6]


def test_a_run_is_shown_and_is_the_same_run(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, rate, gradient, memory, fixed points by band, pictures; no byte of it differs."""
    undisturbed = train_adapter(make_run(), tmp_path / "undisturbed")
    monkeypatch.setenv(BOARD_FOLDER, str(tmp_path / "board"))
    journal = train_adapter(make_run(), tmp_path / "shown")
    assert journal == undisturbed
    require_whole(tmp_path / "board" / "shown", journal)
    memory = curve(events(tmp_path / "board" / "shown"), "step/memory, GB")
    assert list(memory) == STEPS
    assert all(0.01 < size < 1000 for size in memory.values())


@pytest.mark.parametrize("every_s", ["0", "1000"])
def test_a_resumed_run_goes_on_without_doubled_points(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: str
) -> None:
    """Killed in step 6, with a state of step 5 or none: what was shown of later steps is undone."""
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", every_s)
    monkeypatch.setenv(BOARD_FOLDER, str(tmp_path / "board"))
    with pytest.raises(RuntimeError, match="killed"):
        train_adapter(make_run(dies_at=3), tmp_path / "run")
    journal = train_adapter(make_run(), tmp_path / "run")
    assert len(list((tmp_path / "board" / "run").iterdir())) == 2
    require_whole(tmp_path / "board" / "run", journal)


def test_turned_on_in_the_middle_it_shows_the_run_from_its_start(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state holds the history, and the pictures lie beside it."""
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", "0")
    with pytest.raises(RuntimeError, match="killed"):
        train_adapter(make_run(dies_at=3), tmp_path / "run")
    monkeypatch.setenv(BOARD_FOLDER, str(tmp_path / "board"))
    journal = train_adapter(make_run(), tmp_path / "run")
    require_whole(tmp_path / "board" / "run", journal)


def test_what_is_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Package and folder in one message, and nothing is asked of those who want no board."""
    monkeypatch.setattr(board, "find_spec", lambda _: None)
    monkeypatch.delenv(BOARD_FOLDER, raising=False)
    require_board()
    (tmp_path / "file").touch()
    monkeypatch.setenv(BOARD_FOLDER, str(tmp_path / "file"))
    with pytest.raises(HardwareError, match=r"2 problems[\s\S]*is a file[\s\S]*blocklens\[live\]"):
        require_board()
