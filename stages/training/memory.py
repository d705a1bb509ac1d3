"""Out of memory: what to change, in order of effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from stages.contracts.errors import Problem, TrainingError
from stages.contracts.params import ModelParams, TrainParams

LOADING: Final = "while loading"
SCORING: Final = "while scoring"

_CPU_ALLOCATOR: Final = "DefaultCPUAllocator"  # c10/core/impl/alloc_cpu.cpp raises a RuntimeError
_AFTERWARDS: Final = "Other settings are another run, which starts from the base model"


@contextmanager
def explained_memory(params: TrainParams, model: ModelParams, where: str) -> Iterator[None]:
    """Turn running out of memory, on a GPU or on the CPU, into advice.

    `where` is LOADING, SCORING or the step, as the message will name it.

    Raises:
        TrainingError: the body ran out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _advice(params, model, where, error) from error
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise _advice(params, model, where, error) from error


def _advice(
    params: TrainParams, model: ModelParams, where: str, error: BaseException
) -> TrainingError:
    ways = _smaller_base(model, on_gpu=isinstance(error, torch.OutOfMemoryError))
    if where == SCORING:
        ways += ["sampling.batch: 1", "a smaller sampling.size_px"]
    elif where != LOADING:
        ways += _smaller_step(params)
    rank = max([params.rank, *(phase.rank for phase in params.phases)])
    if rank > 1:
        ways.append(f"train.rank{' and train.phases' if params.phases else ''} below {rank}")
    ways.append("a machine with more memory")
    numbered = [f"({number}) {way}" for number, way in enumerate(ways, start=1)]
    said = str(error).partition("\n")[0] or type(error).__name__
    remedy = f"In order of effect: {'; '.join(numbered)}. {_AFTERWARDS}."
    return TrainingError("Training ran out of memory", [Problem(where, said.rstrip("."), remedy)])


def _smaller_base(model: ModelParams, *, on_gpu: bool) -> list[str]:
    """Return what would lower the base model's share: half a byte a weight, one, two or four.

    Offloading moves weights from the GPU to main memory, so it is no help where that ran out; it
    and quantisation exclude each other.
    """
    if model.offload == "group":
        return ["model.precision: bfloat16"] if model.precision == "float32" else []
    ways = []
    if model.quantisation == "none":
        needs = "" if model.precision == "bfloat16" else ", with model.precision: bfloat16"
        kinds = "nf4 (on a GPU), or fp8, or int8"
        ways.append(f"a quantised base: model.quantisation {kinds}{needs}")
    elif model.quantisation != "nf4" and on_gpu:
        ways.append(f"model.quantisation: nf4, half the weights' memory of {model.quantisation}")
    if on_gpu:
        instead = "" if model.quantisation == "none" else " and model.quantisation: none"
        ways.append(
            f"model.offload: group{instead}, which is slow, and needs "
            "train.gradient_checkpointing and attribute.gradient_checkpointing: true"
        )
    return ways


def _smaller_step(params: TrainParams) -> list[str]:
    """Return what would lower a step's need for memory, the most effective first."""
    ways = []
    if not params.gradient_checkpointing:
        ways.append("train.gradient_checkpointing: true")
    ways.append("smaller encode.sizes_px")
    if params.batch > 1:
        pictures = params.batch * params.accumulation
        ways.append(f"train.batch: 1 with train.accumulation: {pictures}, which trains the same")
    return ways
