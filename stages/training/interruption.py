"""Ctrl-C and SIGTERM, held back until a step is whole.

Between two steps a run's state is consistent; in the middle of an optimiser's update it is not.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any] | int | None
_log = logging.getLogger(__name__)


@dataclass
class Interruption:
    """The signal that asked the run to stop, or None so far."""

    number: int | None = None

    def leave(self) -> None:
        """End the process as the signal would have: KeyboardInterrupt, or exit code 128 + number.

        Raises:
            KeyboardInterrupt: the signal was SIGINT.
            SystemExit: it was another one.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise SystemExit(128 + self.number)


@contextmanager
def held_interruption() -> Iterator[Interruption]:
    """Yield a record of the first SIGINT or SIGTERM; a second one acts at once.

    Python runs signal handlers in the main thread only; in any other this holds nothing back.
    A signal that is ignored (nohup, a shell's background job) stays ignored.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {
        number: handler for number, handler in previous.items() if handler != signal.SIG_IGN
    }

    def hold(number: int, _frame: FrameType | None) -> None:
        interruption.number = number
        _restore(previous)
        _log.info("stopping after this step; once more to stop at once, back to the last save")

    for number in previous:
        signal.signal(number, hold)
    try:
        yield interruption
    finally:
        _restore(previous)


def _restore(handlers: Mapping[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
