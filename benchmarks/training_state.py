"""What training keeps of an adapter besides itself and its gradient, in bytes.

Every optimiser's state is a function of the matrices' shapes (A [rank, in], B [out, rank]); the
sizes are compared with those of the real optimisers by tests/benchmarks/test_training_state.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

Shape = tuple[int, ...]

FLOAT_BYTES: Final = 4
_8BIT_BLOCK: Final = 256  # bitsandbytes, optim/optimizer.py: numbers that share one float32 scale
_8BIT_LEAST: Final = 4096  # min_8bit_size: smaller matrices keep float32 moments
HELPER_RANK: Final = 16
"""Rank that a training adapter is taken to have; its file says which it is."""


@dataclass(frozen=True)
class Kept:
    """What a run keeps: its optimiser (train.optimiser), a moving average, a training adapter."""

    optimiser: str
    average: bool
    helper: bool


def _numbers(shape: Shape) -> int:
    rows, columns = shape
    return rows * columns


def _eight_bit(shape: Shape) -> int:
    numbers = _numbers(shape)
    if numbers < _8BIT_LEAST:
        return 2 * FLOAT_BYTES * numbers
    return 2 * (numbers + FLOAT_BYTES * -(-numbers // _8BIT_BLOCK))


STATE_BYTES: Final = MappingProxyType[str, Callable[[Shape], int]](
    {
        "adamw": lambda shape: 2 * FLOAT_BYTES * _numbers(shape),  # two moments
        "adamw8bit": _eight_bit,  # the same in 8 bits, and their scales
        "adafactor": lambda shape: FLOAT_BYTES * sum(shape),  # a mean per row, one per column
        "lion": lambda shape: FLOAT_BYTES * _numbers(shape),  # one moment
        # Two moments, the start and the sum of gradients.
        "prodigy": lambda shape: 4 * FLOAT_BYTES * _numbers(shape),
        "schedule-free-adamw": lambda shape: 2 * FLOAT_BYTES * _numbers(shape),  # moment, average
    }
)
"""train.optimiser -> bytes of its state for a matrix of a shape; single numbers left out."""


def state_bytes(optimiser: str, shapes: Iterable[Shape]) -> int:
    """Return the bytes of an optimiser's state for matrices of these shapes."""
    return sum(STATE_BYTES[optimiser](shape) for shape in shapes)


def average_bytes(shapes: Iterable[Shape]) -> int:
    """Return the bytes of a moving average (train.ema_decay above 0): a float32 copy."""
    return sum(FLOAT_BYTES * _numbers(shape) for shape in shapes)
