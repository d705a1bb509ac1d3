"""Which checkpoint is shipped."""

from __future__ import annotations

from dataclasses import dataclass

from stages.training.state import Journal


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoint's step, its validation loss, and the base model's."""

    step: int
    validation_loss: float
    validation_loss_base: float

    @property
    def improvement(self) -> float:
        """How far the loss is below the base model's: 0.25 is 25 %."""
        return 1 - self.validation_loss / self.validation_loss_base


def choose_checkpoint(journal: Journal, checkpoints: set[int], select: str) -> Choice:
    """Return the last checkpoint, or for `best` the earliest one of lowest validation loss.

    Args:
        journal: of a finished run; its step 0 is the base model.
        checkpoints: the steps whose adapters were kept.
        select: `best` or `last`.

    Raises:
        ValueError: no checkpoint was measured, or the base model was not.
    """
    losses = {
        row.step: row.validation_loss for row in journal.history if row.validation_loss is not None
    }
    measured = sorted(checkpoints & losses.keys())
    if not measured or 0 not in losses:
        raise ValueError(f"nothing to choose from: measured steps {sorted(losses)}")
    step = measured[-1] if select == "last" else min(measured, key=lambda step: losses[step])
    return Choice(step, losses[step], losses[0])
