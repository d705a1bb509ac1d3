"""Numbers that variables of the environment state, checked before anything is read or loaded."""

from __future__ import annotations

import math
import os
from typing import Final

from stages.contracts.errors import HardwareError, Problem

THREADS: Final = "BLOCKLENS_THREADS"
SAVE_EVERY: Final = "BLOCKLENS_SAVE_EVERY_S"


def require_numbers() -> None:
    """Raise HardwareError for a variable that should be a number and is none."""
    if problems := number_problems():
        raise HardwareError("The environment cannot be used", problems)


def number_problems() -> list[Problem]:
    """Return which variables should be numbers and are none."""
    problems = []
    threads, seconds = os.environ.get(THREADS), os.environ.get(SAVE_EVERY)
    if threads and not (threads.isascii() and threads.isdigit() and int(threads) > 0):
        what, remedy = "is no number of threads", "Use 1 or more, or unset it."
        problems.append(Problem(f"{THREADS}={threads}", what, remedy))
    if seconds is not None and not _is_duration(seconds):
        what, remedy = "is no number of seconds", "Use 30 or the like, or unset it."
        problems.append(Problem(f"{SAVE_EVERY}={seconds}", what, remedy))
    return problems


def _is_duration(text: str) -> bool:
    try:
        return 0.0 <= float(text) < math.inf
    except ValueError:
        return False
