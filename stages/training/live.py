"""A run that can be watched: its history on the disk, and TensorBoard where it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stages.contracts.tables import HISTORY, write_table
from stages.runtime.device import resident_bytes
from stages.runtime.files import write_whole
from stages.training.board import Board, open_board
from stages.training.history import history_table
from stages.training.state import Journal

HISTORY_NAME: Final = "history.csv"
_log = logging.getLogger(__name__)


class Live:
    """What is written for people while a run goes on; nothing of it comes back into the run."""

    def __init__(self, folder: Path, board: Board | None) -> None:
        self._folder = folder
        self._board = board

    def step_taken(self, journal: Journal) -> None:
        """Show the last step; the history is written anew where it was measured."""
        if self._board is not None:
            self._board.write(journal, resident_bytes())
        if journal.history[-1].validation_loss is not None:
            self.write_history(journal)

    def before_saving(self, journal: Journal) -> None:
        """Have on the disk what the state that comes next will not show again."""
        self.write_history(journal)
        if self._board is not None:
            self._board.flush()

    def write_history(self, journal: Journal) -> None:
        """Put the table HISTORY of all steps so far in the place of the last one, as a whole."""
        table = history_table(journal)
        write_whole(self._folder / HISTORY_NAME, lambda path: write_table(HISTORY, table, path))


@contextmanager
def live_view(folder: Path, journal: Journal) -> Iterator[Live]:
    """Yield the view of a run whose journal so far is `journal`, and close it at the end.

    `folder` is the run's; the history stands in its `history.csv`, which the log says once.
    """
    board = open_board(folder, journal)
    live = Live(folder, board)
    live.write_history(journal)
    _log.info("history while it trains: %s", folder / HISTORY_NAME)
    if board is not None:
        _log.info("TensorBoard: %s", board.place)
    try:
        yield live
    finally:
        if board is not None:
            board.close()
