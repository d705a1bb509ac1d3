"""Functions that workers import: what a session is, and what is done with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.contracts.errors import AdapterError, Problem

KILL_AFTER_S = 1.0
"""Time for the results that a worker still holds to reach the driver."""


@dataclass(frozen=True)
class Place:
    """Where a session notes what it did, and what its machine lacks."""

    notes: Path
    lacks: str = ""


@contextmanager
def open_place(place: Place) -> Iterator[Place]:
    """Note the opening and the closing of a session."""
    note(place, f"open {os.getpid()}")
    yield place
    note(place, f"close {os.getpid()}")


def lacking(place: Place) -> list[Problem]:
    """Return what the place says."""
    return [Problem(place.lacks, "missing", "Put it there.")] if place.lacks else []


def note(place: Place, line: str) -> None:
    """Add a line to the notes; short lines of several processes do not mix."""
    with place.notes.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def square(place: Place, number: int) -> int:
    """Return the square; later numbers are ready sooner."""
    note(place, f"item {number}")
    time.sleep(0.05 / (number + 1))
    return number * number


def square_but_die_at_3(place: Place, number: int) -> int:
    """Return the square; the first process that gets 3 is killed over it."""
    note(place, f"item {number}")
    grave = place.notes.with_name("grave")
    if number == 3 and not grave.exists():
        time.sleep(KILL_AFTER_S)
        grave.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die(place: Place, number: int) -> int:
    """Kill every process that tries."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(place: Place, number: int) -> int:
    """Refuse the input, each time noting that it was asked."""
    note(place, f"item {number}")
    raise AdapterError("The adapter cannot be read", [Problem("a.safetensors", "short", "Fix it.")])


def stumble_once(place: Place, number: int) -> int:
    """Fail once, through no fault of the input."""
    note(place, f"item {number}")
    grave = place.notes.with_name("grave")
    if not grave.exists():
        grave.touch()
        raise MemoryError
    return number
