"""A run is a function of its inputs, wherever it was killed."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.adapters.attach import lora_parameters
from stages.adapters.files import read_adapter
from stages.contracts.errors import TrainingError
from stages.encoding.encoded import Encoded
from stages.training.live import HISTORY_NAME
from stages.training.loop import Pictures, Run, average_name, checkpoint_name, train_adapter
from stages.training.state import Journal
from stages.training.validation import measure

MakeRun = Callable[..., Run]


def contents(folder: Path) -> dict[str, bytes]:
    """Return a run's files and their bytes, its states apart."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("state-")
    }


@pytest.fixture
def undisturbed(make_run: MakeRun, tmp_path: Path) -> tuple[Journal, dict[str, bytes]]:
    """The journal and the files of a run that nobody killed."""
    folder = tmp_path / "undisturbed"
    return train_adapter(make_run(), folder), contents(folder)


def test_journal_and_files_of_a_run(undisturbed: tuple[Journal, dict[str, bytes]]) -> None:
    """Every step has a row; validation, checkpoints and samples come when they are due."""
    journal, files = undisturbed
    assert [row.step for row in journal.history] == list(range(7))
    assert journal.history[0].loss is None
    measured = [row.step for row in journal.history if row.validation_loss is not None]
    assert measured == [0, 2, 4, 6]
    names = {checkpoint_name(4), checkpoint_name(6)}
    names |= {f"samples/step-{step:04d}-0.png" for step in (0, 3, 6)}
    assert set(files) == names | {HISTORY_NAME}
    assert set(journal.files) == names


def test_checkpoint_is_the_adapter_at_its_step(make_run: MakeRun, tmp_path: Path) -> None:
    """The last checkpoint holds the weights that the model has at the end."""
    run = make_run()
    train_adapter(run, tmp_path)
    adapter = read_adapter(tmp_path / checkpoint_name(6))
    weights = lora_parameters(run.transformer)
    assert 2 * len(adapter.modules) == len(weights)
    for module, pair in adapter.modules.items():
        assert torch.equal(pair.down, weights[f"transformer.{module}.lora_A.weight"])
        assert torch.equal(pair.up, weights[f"transformer.{module}.lora_B.weight"])
    assert adapter.metadata["step"] == "6"


@pytest.mark.parametrize("dies_at", [1, 2, 3])
@pytest.mark.parametrize("every_s", ["0", "1000"])
def test_killed_run_ends_with_the_same_bytes(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[Journal, dict[str, bytes]],
    dies_at: int,
    every_s: str,
) -> None:
    """Killed while drawing the samples of step 0, 3 or 6, with and without a state to go on from.

    The stand-in pictures count the calls in one process, so they are left out.
    """
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", every_s)
    folder = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="killed"):
        train_adapter(make_run(dies_at=dies_at), folder)
    journal = train_adapter(make_run(), folder)
    expected_journal, expected = undisturbed
    assert journal.history == expected_journal.history
    adapters = {name: data for name, data in expected.items() if name.startswith("checkpoints")}
    files = contents(folder)
    assert {name: files[name] for name in adapters} == adapters
    assert files.keys() == expected.keys()


def test_states_of_different_moments_lead_to_the_same_end(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[Journal, dict[str, bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A damaged newest state: the run goes on from the one before, to the same adapter."""
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", "0")
    with pytest.raises(RuntimeError, match="killed"):
        train_adapter(make_run(dies_at=3), tmp_path / "killed")
    newest = max((tmp_path / "killed").glob("state-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.INFO):
        train_adapter(make_run(), tmp_path / "killed")
    assert "is damaged or incomplete" in caplog.text
    assert "continuing after step 4" in caplog.text
    assert contents(tmp_path / "killed")[checkpoint_name(6)] == undisturbed[1][checkpoint_name(6)]


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_interrupted_run_saves_first(
    make_run: MakeRun,
    tmp_path: Path,
    undisturbed: tuple[Journal, dict[str, bytes]],
    number: signal.Signals,
    end: type[BaseException],
) -> None:
    """Ctrl-C or SIGTERM in the middle of a step: it is finished and saved, nothing is lost."""
    run = make_run()
    pictures = run.draw_samples
    asked = iter([False, True])

    def draw() -> Pictures:
        if next(asked):
            os.kill(os.getpid(), number)
        return pictures()

    with pytest.raises(end):
        train_adapter(replace(run, draw_samples=draw), tmp_path / "stopped")
    assert next((tmp_path / "stopped").glob("state-*")).name.startswith("state-00000003-")
    train_adapter(make_run(), tmp_path / "stopped")
    assert contents(tmp_path / "stopped")[checkpoint_name(6)] == undisturbed[1][checkpoint_name(6)]


def test_finished_state_is_not_trained_again(make_run: MakeRun, tmp_path: Path) -> None:
    """A kill between training and publishing costs nothing: the run is whole already."""
    first = train_adapter(make_run(), tmp_path)
    assert train_adapter(make_run(dies_at=1), tmp_path) == first


def test_seed_decides_the_result(
    make_run: MakeRun, tmp_path: Path, undisturbed: tuple[Journal, dict[str, bytes]]
) -> None:
    """Another seed is another adapter, measured on the same validation points."""
    journal = train_adapter(make_run(change={"seed": 7}), tmp_path / "other")
    expected = undisturbed[0]
    assert journal.history[0] == expected.history[0]
    assert journal.history[-1].validation_loss != expected.history[-1].validation_loss
    name = checkpoint_name(6)
    assert contents(tmp_path / "other")[name] != undisturbed[1][name]


def measured(run: Run, path: Path) -> float:
    """Return the validation loss of the run's model with the adapter of a file."""
    for module, pair in read_adapter(path).modules.items():
        for key, matrix in ((f"{module}.lora_A", pair.down), (f"{module}.lora_B", pair.up)):
            parameters = lora_parameters(run.transformer)
            parameters[f"transformer.{key}.weight"].data.copy_(matrix)
    return measure(run.transformer, run.data, run.params).validation_loss


def test_average_is_kept_beside_the_weights(
    make_run: MakeRun, tmp_path: Path, undisturbed: tuple[Journal, dict[str, bytes]]
) -> None:
    """The same run with a moving average has the same weights, and files of the average beside."""
    change = {"ema_decay": 0.9}
    journal = train_adapter(make_run(change=change), tmp_path)
    expected = undisturbed[0]
    assert [
        replace(row, validation_loss_ema=None, probe_loss_ema=None) for row in journal.history
    ] == expected.history
    assert set(journal.files) - set(expected.files) == {average_name(4), average_name(6)}
    raw, average = (read_adapter(tmp_path / name(6)) for name in (checkpoint_name, average_name))
    assert average.metadata == {**raw.metadata, "blocklens.weights": "ema"}
    row = journal.history[6]
    assert row.validation_loss_ema is not None
    assert row.validation_loss_ema != row.validation_loss
    assert measured(make_run(), tmp_path / average_name(6)) == row.validation_loss_ema
    assert measured(make_run(), tmp_path / checkpoint_name(6)) == row.validation_loss
    assert journal.history[0].validation_loss_ema == journal.history[0].validation_loss


def test_schedule_free_weights_are_those_measured_and_kept(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """The checkpoint holds the average that was validated, not the point of the last gradient."""
    change = {"optimiser": "schedule-free-adamw", "learning_rate": 0.05}
    run = make_run(change=change)
    journal = train_adapter(run, tmp_path)
    trained = measure(run.transformer, run.data, run.params).validation_loss
    kept = measured(make_run(), tmp_path / checkpoint_name(6))
    assert kept == journal.history[6].validation_loss
    assert kept != trained


def test_out_of_memory_says_what_to_change(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a run, with its step; the earlier states are still there."""
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", "0")
    run = make_run()
    asked = iter([False, True])

    def draw() -> Pictures:
        return [np.empty(10**15, dtype=np.uint8)] if next(asked) else []

    with pytest.raises(TrainingError, match=r"step 3: .*[\s\S]*quantised"):
        train_adapter(replace(run, draw_samples=draw), tmp_path)
    assert len(list(tmp_path.glob("state-00000002-*"))) == 1


def test_broken_held_out_picture_stops_before_the_first_step(
    make_run: MakeRun, encoded: Encoded, tmp_path: Path
) -> None:
    """No checkpoint could be chosen by such a loss, so that no time is spent on one."""
    broken = encoded.validation[0]
    latents = replace(broken.latents, mean=broken.latents.mean * float("nan"))
    data = replace(encoded, validation=(replace(broken, latents=latents), encoded.validation[1]))
    with pytest.raises(
        TrainingError, match=r"step 0, picture held-out-0, sigma 0\.\d+: loss is nan"
    ):
        train_adapter(make_run(data=data), tmp_path)
    assert contents(tmp_path) == {}


def test_training_learns(make_run: MakeRun, encoded: Encoded, tmp_path: Path) -> None:
    """On held-out pictures that equal the training ones, the loss falls by a fifth in 60 steps."""
    same = replace(encoded, validation=encoded.training)
    change = {
        "steps": 60,
        "rank": 8,
        "alpha": 8.0,
        "learning_rate": 0.01,
        "caption_dropout": 0.0,
        "validation_every": 60,
        "checkpoint_every": 60,
        "sample_every": 60,
    }
    journal = train_adapter(make_run(change=change, data=same), tmp_path)
    base, end = journal.history[0].validation_loss, journal.history[-1].validation_loss
    assert base is not None
    assert end is not None
    assert end < 0.8 * base


def test_progress_is_reported(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says the line to beat first, then loss and distance to it at every validation."""
    with caplog.at_level(logging.INFO):
        train_adapter(make_run(), tmp_path)
    assert "base model: validation loss" in caplog.text
    assert caplog.text.count("% below the base model's") == 3
