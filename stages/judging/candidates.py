"""What can be chosen: the weights after a step, or their moving average after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.training.loop import average_name, checkpoint_name
from stages.training.state import Journal, Row

WORDS = {"raw": "raw weights", "ema": "moving average"}
"""What people call the kinds of weights."""


@dataclass(frozen=True)
class Candidate:
    """A kept checkpoint: its step and kind of weights; the base model is step 0, raw."""

    step: int
    weights: Literal["raw", "ema"] = "raw"

    @property
    def file(self) -> str:
        """Return its file, relative to the run's folder; the base model has none."""
        return (average_name if self.weights == "ema" else checkpoint_name)(self.step)

    @property
    def label(self) -> str:
        """Return its name for people: `step 200`, `step 200, moving average`, `base model`."""
        name = f"step {self.step}" if self.step else "base model"
        return name if self.weights == "raw" else f"{name}, {WORDS[self.weights]}"

    def losses(self, row: Row) -> tuple[float | None, float | None]:
        """Return its losses on held-out and on training pictures, from its step's row."""
        if self.weights == "ema":
            return row.validation_loss_ema, row.probe_loss_ema
        return row.validation_loss, row.probe_loss


BASE_MODEL = Candidate(0)


def kept_candidates(journal: Journal) -> list[Candidate]:
    """Return the checkpoints that a run kept, by step, the weights before their average."""
    each = (Candidate(row.step, kind) for row in journal.history for kind in ("raw", "ema"))
    return [candidate for candidate in each if candidate.file in journal.files]
