"""TensorBoard's view of a run while it trains, where BLOCKLENS_TENSORBOARD names a folder.

Environment, not a param: it changes no byte of the result. Each run has a folder of its own below
that one, named by its fingerprint, so that runs lie side by side and a resumed one goes on in its
own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from stages.contracts.errors import HardwareError, Problem
from stages.training.state import Journal, Row

BOARD_FOLDER: Final = "BLOCKLENS_TENSORBOARD"
SMOOTHED_STEPS: Final = 50
"""The smoothed loss is the mean over this many steps."""

_NAME_DIGITS: Final = 12  # of the fingerprint
_EVENTS: Final = "events.out.tfevents.*"
_GIGABYTE: Final = 10**9
_TAGS: Final = {
    "loss": "loss/step",
    "regularisation_loss": "loss/regularisation",
    "preservation_loss": "loss/output preservation",
    "learning_rate": "step/learning rate",
    "gradient_norm": "step/gradient norm",
    "validation_loss": "fixed points/held out",
    "validation_loss_low": "fixed points/held out, low noise",
    "validation_loss_middle": "fixed points/held out, middle noise",
    "validation_loss_high": "fixed points/held out, high noise",
    "probe_loss": "fixed points/training pictures",
    "validation_loss_ema": "fixed points/held out, moving average",
    "probe_loss_ema": "fixed points/training pictures, moving average",
}
"""Column of the history -> its curve."""


def require_board() -> None:
    """Raise HardwareError unless this machine can write what BLOCKLENS_TENSORBOARD asks for.

    Raises:
        HardwareError: the package tensorboard is missing, or the folder is a file.
    """
    root = os.environ.get(BOARD_FOLDER)
    if not root:
        return
    problems = []
    if find_spec("tensorboard") is None:
        what = "needs the package tensorboard, which is not installed"
        remedy = "Run `pip install 'blocklens[live]'`, or unset the variable."
        problems.append(Problem(BOARD_FOLDER, what, remedy))
    if Path(root).exists() and not Path(root).is_dir():
        problems.append(Problem(BOARD_FOLDER, f"{root} is a file", "Name a folder."))
    if problems:
        raise HardwareError("The run cannot be shown in TensorBoard", problems)


class Board:
    """The event file of one session of a run."""

    def __init__(self, root: Path, folder: Path, journal: Journal) -> None:
        """Go on behind the journal's last step, or begin with all that it holds.

        What an earlier session wrote of later steps, before it was killed, is withdrawn.

        Args:
            root: what BLOCKLENS_TENSORBOARD names.
            folder: of the run; its name is the fingerprint, and its sample pictures lie there.
            journal: of the run so far.
        """
        # Not at the head: the package is optional.
        from torch.utils.tensorboard import SummaryWriter

        self.place = root / folder.name[:_NAME_DIGITS]
        self._folder = folder
        continued = journal.step > 0 and any(self.place.glob(_EVENTS))
        first = journal.step + 1 if continued else 0
        self._writer: Any = SummaryWriter(str(self.place), purge_step=first)
        for place, row in enumerate(journal.history):
            if row.step >= first:
                self._write(journal, row, journal.history[: place + 1])

    def write(self, journal: Journal, memory_bytes: float) -> None:
        """Write the last step: its row, its pictures, and the memory in use."""
        self._write(journal, journal.history[-1], journal.history)
        self._writer.add_scalar("step/memory, GB", memory_bytes / _GIGABYTE, journal.step)

    def flush(self) -> None:
        """Put on the disk what was written; before a state is, so that none of it is missing."""
        self._writer.flush()

    def close(self) -> None:
        """End the session."""
        self._writer.close()

    def _write(self, journal: Journal, row: Row, history: Sequence[Row]) -> None:
        for column, tag in _TAGS.items():
            value = getattr(row, column)
            if value is not None and (row.step > 0 or column != "learning_rate"):
                self._writer.add_scalar(tag, value, row.step)
        losses = [each.loss for each in history[-SMOOTHED_STEPS:] if each.loss is not None]
        if row.loss is not None:
            self._writer.add_scalar("loss/smoothed", sum(losses) / len(losses), row.step)
        beginning = f"samples/step-{row.step:04d}-"
        for name in sorted(name for name in journal.files if name.startswith(beginning)):
            with Image.open(self._folder / name) as file:
                picture = np.asarray(file.convert("RGB"))
            tag = f"samples/{Path(name).stem.rpartition('-')[2]}"
            self._writer.add_image(tag, picture, row.step, dataformats="HWC")


def open_board(folder: Path, journal: Journal) -> Board | None:
    """Return the board of a run, or None where the environment asks for none."""
    root = os.environ.get(BOARD_FOLDER)
    return Board(Path(root), folder, journal) if root else None
