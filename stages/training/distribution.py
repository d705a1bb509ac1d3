"""One run on several processes, one per GPU: the same batches, the same loss, one writer.

A step's samples are a function of the step (batches.py). Each process takes its share of them,
weighted as in the whole batch, and the gradients are added up once per step: what DDP's mean gives
where all shares are equal, and right where they are not (pictures of different shapes, a batch
that does not divide). Every process then takes the same optimiser step. Process 0 alone measures,
draws, writes and saves.

How many processes there are is environment, not a param: it changes no result beyond the rounding
of a sum. torchrun and `accelerate launch` set what is read here; `BLOCKLENS_PROCESSES` lets
`dvc repro` start them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from accelerate import PartialState
from torch import distributed, nn

from stages.contracts.errors import HardwareError, Problem
from stages.contracts.stopping import SAVING_S
from stages.runtime.console import prepare_process

Item = TypeVar("Item")

_PROCESSES: Final = "BLOCKLENS_PROCESSES"
_WORLD_SIZE: Final = "WORLD_SIZE"  # set by torchrun and accelerate launch
_PATIENCE: Final = timedelta(hours=6)  # the others wait while process 0 validates and draws


@dataclass(frozen=True)
class World:
    """This process's number, from 0 on, and how many there are."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part of the whole: every `size`-th item, from its own number on."""
        return items[self.rank :: self.size]


def world() -> World:
    """Return the world that `joined_processes` opened; a single process has one of its own."""
    if not distributed.is_initialized():
        return World(0, 1)
    return World(distributed.get_rank(), distributed.get_world_size())


def start_processes(module: str) -> None:
    """Go on as `BLOCKLENS_PROCESSES` processes of `python -m module`, if that is more than one.

    The launcher (torchrun) takes the place of this process, so that signals and exit code are its.
    In a process that a launcher started, nothing happens.

    Raises:
        SystemExit: the variable is not a whole number of at least 1.
    """
    text = os.environ.get(_PROCESSES, "1")
    if not text.isdecimal() or int(text) < 1:
        sys.exit(f"{_PROCESSES}: got {text!r}. Set it to the number of GPUs to train on.")
    if int(text) == 1 or _WORLD_SIZE in os.environ:
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={text}"]
    launcher += [f"--shutdown-timeout={SAVING_S}"]
    prepare_process()  # what outlives exec: the launcher, too, ends with its parent
    os.execv(sys.executable, [sys.executable, *launcher, "-m", module, *sys.argv[1:]])


@contextmanager
def joined_processes(device: torch.device, batch: int) -> Iterator[World]:
    """Yield the world of all processes that were launched together; one process needs none.

    Processes other than 0 log warnings only. The launcher passes Ctrl-C and SIGTERM on to each
    as what they are. A terminal does not reach them: each is in a session of its own.

    Raises:
        HardwareError: there are more processes than pictures in a step.
    """
    size = int(os.environ.get(_WORLD_SIZE, "1"))
    if size > batch:
        what = f"{size} processes for {batch} {'picture' if batch == 1 else 'pictures'} a step"
        remedy = "Raise train.batch or train.accumulation, or start fewer processes."
        raise HardwareError("Some processes have nothing to do", [Problem("train", what, remedy)])
    if size == 1:
        yield World(0, 1)
        return
    state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
    if not state.is_main_process:
        logging.disable(logging.INFO)
    try:
        yield world()
    finally:
        state.destroy_process_group()
        logging.disable(logging.NOTSET)


@contextmanager
def leader_first() -> Iterator[None]:
    """Let process 0 go through the block before the others do."""
    if not world().leads:
        distributed.barrier()
    yield
    if world().leads and world().size > 1:
        distributed.barrier()


def add_gradients(parameters: Mapping[str, nn.Parameter]) -> None:
    """Give every parameter the sum of its gradients in all processes, in float32."""
    if world().size == 1:
        return
    matrices = list(parameters.values())
    for matrix in matrices:
        if matrix.grad is None:  # this process had no sample
            matrix.grad = torch.zeros_like(matrix)
    flat = torch.cat([matrix.grad.flatten() for matrix in matrices if matrix.grad is not None])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [matrix.numel() for matrix in matrices])
    for matrix, part in zip(matrices, parts, strict=True):
        matrix.grad = part.view_as(matrix)


def total(value: float) -> float:
    """Return the sum of a number over all processes."""
    return _reduced(value, distributed.ReduceOp.SUM)


def agreed(number: int | None) -> int | None:
    """Return the signal that any process was sent, so that all stop after the same step."""
    return int(_reduced(number or 0, distributed.ReduceOp.MAX)) or None


def gathered(items: Sequence[Item]) -> list[Item]:
    """Return the items of all processes, in the order of their numbers."""
    if world().size == 1:
        return list(items)
    parts: list[Any] = [None] * world().size
    distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def _reduced(value: float, operation: Any) -> float:
    if world().size == 1:
        return value
    # NCCL moves what lies on a GPU, gloo what lies in main memory.
    device = PartialState().device
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, operation)
    return tensor.item()
