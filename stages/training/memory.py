"""Out of memory: what to change, in order of effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from stages.contracts.errors import Problem, TrainingError
from stages.contracts.params import TrainParams

_CPU_ALLOCATOR: Final = "DefaultCPUAllocator"  # c10/core/impl/alloc_cpu.cpp raises a RuntimeError
_AFTERWARDS: Final = "Other settings are another run, which starts from the base model"


@contextmanager
def explained_memory(params: TrainParams, step: int) -> Iterator[None]:
    """Turn running out of memory, on a GPU or on the CPU, into advice.

    Raises:
        TrainingError: the body ran out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _advice(params, step, error) from error
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise _advice(params, step, error) from error


def _advice(params: TrainParams, step: int, error: BaseException) -> TrainingError:
    numbered = [f"({number}) {way}" for number, way in enumerate(_ways_out(params), start=1)]
    said = str(error).partition("\n")[0] or type(error).__name__
    remedy = f"In order of effect: {'; '.join(numbered)}. {_AFTERWARDS}."
    return TrainingError(
        "Training ran out of memory", [Problem(f"step {step}", said.rstrip("."), remedy)]
    )


def _ways_out(params: TrainParams) -> list[str]:
    """Return what would lower the need for memory, the most effective first."""
    ways = ["a quantised base: model.quantisation nf4, or fp8, or int8"]
    if not params.gradient_checkpointing:
        ways.append("train.gradient_checkpointing: true")
    ways.append("a smaller encode.size_px")
    if params.batch > 1:
        pictures = params.batch * params.accumulation
        ways.append(f"train.batch: 1 with train.accumulation: {pictures}, which trains the same")
    if params.rank > 1:
        ways.append(f"train.rank below {params.rank}")
    return ways
