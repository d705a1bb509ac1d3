"""The resume matrix: whatever the optimiser, a run killed at any step ends with the same bytes.

Five optimisers, with and without accumulation, moving average and adapter dropout, each killed
after three different steps: all states, adapters, averages, histories and pictures are compared.
Then the same with phases, killed before, at and after a boundary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.adapters.attach import lora_parameters
from stages.contracts.params import PhaseParams
from stages.training import loop
from stages.training.loop import Pictures, Run, checkpoint_name, train_adapter
from stages.training.state import Journal
from tests.optimisation.test_optimiser import ON_CPU

MakeRun = Callable[..., Run]
STEPS = 6
KILLED_AFTER = (1, 3, 5)
"""In warm-up and before the first validation; after a sample; between the last two steps."""

CASES = [
    (optimiser, accumulation, ema_decay)
    for optimiser in ON_CPU
    for accumulation in (1, 2)
    for ema_decay in (0.0, 0.5)
]


PHASES = [
    PhaseParams(rank=4, alpha=3.0, steps=2, learning_rate=0.002),
    PhaseParams(rank=5, alpha=5.0, steps=2, learning_rate=0.004),
]
KILLED_AROUND_A_BOUNDARY = (2, 3, 5)
"""Phases are steps 1-2, 3-4, 5-6: at the end of one, and after the first step of the others."""

PHASED_CASES = [
    (optimiser, accumulation, ema_decay)
    for optimiser in ON_CPU
    for accumulation, ema_decay in ((1, 0.0), (2, 0.5))
]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def drawn_from_weights(run: Run) -> Run:
    """Return the run with sample pictures that depend on every weight of the adapter."""

    def draw() -> Pictures:
        matrices = lora_parameters(run.transformer).values()
        weights = b"".join(matrix.detach().numpy().tobytes() for matrix in matrices)
        digest = np.frombuffer(hashlib.sha512(weights).digest() * 3, dtype=np.uint8)
        return [digest.reshape(8, 8, 3)]

    return replace(run, draw_samples=draw)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return a run's files and their bytes; its two states, whose names hold steps, included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start_and_kill(run: Run, folder: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until step `after` is saved, and die in the middle of the one that follows."""
    take_step = loop.take_step

    def step_or_die(*arguments: object) -> object:
        result = take_step(*arguments)  # type: ignore[arg-type]
        if arguments[-1] == after + 1:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", step_or_die)
        with pytest.raises(Killed):
            train_adapter(run, folder)


@pytest.fixture(autouse=True)
def save_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill costs the step it falls in."""
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", "0")


@pytest.mark.parametrize(("optimiser", "accumulation", "ema_decay"), CASES)
def test_killed_anywhere_ends_with_the_same_bytes(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimiser: str,
    accumulation: int,
    ema_decay: float,
) -> None:
    """Sixty kills in all: one after each of three steps in each of twenty settings."""
    change = {
        "optimiser": optimiser,
        "accumulation": accumulation,
        "ema_decay": ema_decay,
        "steps": STEPS,
        "batch": 1,
        "validation_sigmas": [0.5],
        "probe_pictures": 1,
        "scheduler": "constant" if optimiser == "schedule-free-adamw" else "cosine",
        "adapter_dropout": 0.5,
    }
    undisturbed = train_adapter(drawn_from_weights(make_run(change=change)), tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    assert any(name.startswith("state-00000006") for name in expected)
    assert any(name.endswith("-ema.safetensors") for name in expected) == (ema_decay > 0)
    for after in KILLED_AFTER:
        folder = tmp_path / f"killed-{after}"
        start_and_kill(drawn_from_weights(make_run(change=change)), folder, after, monkeypatch)
        assert newest_step(folder) == after
        journal: Journal = train_adapter(drawn_from_weights(make_run(change=change)), folder)
        assert journal == undisturbed
        assert files_of(folder) == expected


@pytest.mark.parametrize(("optimiser", "accumulation", "ema_decay"), PHASED_CASES)
def test_killed_around_a_boundary_ends_with_the_same_bytes(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimiser: str,
    accumulation: int,
    ema_decay: float,
) -> None:
    """Thirty kills: the state after a phase's last step has its rank, not the next one's."""
    change = {
        "optimiser": optimiser,
        "accumulation": accumulation,
        "ema_decay": ema_decay,
        "steps": 2,
        "phases": PHASES,
        "warmup_steps": 1,
        "batch": 1,
        "validation_sigmas": [0.5],
        "probe_pictures": 1,
        "validation_every": 3,
        "checkpoint_every": 3,
        "scheduler": "constant" if optimiser == "schedule-free-adamw" else "cosine",
        "adapter_dropout": 0.5,
    }
    undisturbed = train_adapter(drawn_from_weights(make_run(change=change)), tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    kept = [step for step in range(7) if checkpoint_name(step) in expected]
    assert kept == [2, 3, 4, 6], "every third one, and the last of every phase"
    for after in KILLED_AROUND_A_BOUNDARY:
        folder = tmp_path / f"killed-{after}"
        start_and_kill(drawn_from_weights(make_run(change=change)), folder, after, monkeypatch)
        assert newest_step(folder) == after
        journal: Journal = train_adapter(drawn_from_weights(make_run(change=change)), folder)
        assert journal == undisturbed
        assert files_of(folder) == expected


def newest_step(folder: Path) -> int:
    """Return the step of the newest saved state."""
    return max(int(path.name.split("-")[1]) for path in folder.glob("state-*"))


def test_matrix_is_large_enough() -> None:
    """The promise is at least twenty-four cases; optimisers that need a GPU are not among them."""
    assert len(CASES) * len(KILLED_AFTER) == 60
    assert len(PHASED_CASES) * len(KILLED_AROUND_A_BOUNDARY) == 30
