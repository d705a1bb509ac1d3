"""The machine a stage runs on. Environment, never params: it must not enter dvc.lock.

BLOCKLENS_DEVICE   cpu, cuda or cuda:N; default: cuda if there is one, else cpu
LOCAL_RANK         set by launchers of several processes: cuda is then this process's own GPU
BLOCKLENS_THREADS  CPU threads for torch; default: all cores
"""

from __future__ import annotations

import os
import re
from typing import Final

import torch

from stages.contracts.errors import HardwareError, Problem
from stages.runtime.environment import number_problems, require_numbers
from stages.runtime.gpu_lock import claim_gpus

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def configure_torch() -> torch.device:
    """Make torch deterministic, set its threads, and return the device to run on.

    A GPU is this process's alone from here on: the call waits for whoever uses it now.

    Raises:
        HardwareError: the environment asks for what this machine does not have.
    """
    check_environment()
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False  # convolutions: the VAE is float32
    if threads := os.environ.get("BLOCKLENS_THREADS"):
        torch.set_num_threads(int(threads))
    name = device_name()
    claim_gpus(name, os.environ)
    if name == "cuda" and (rank := os.environ.get("LOCAL_RANK")):
        name = f"cuda:{rank}"
    return torch.device(name)


def check_environment() -> None:
    """Raise HardwareError for a device that is not here, and for numbers that are none."""
    problems = []
    name = device_name()
    asked = re.fullmatch(r"cpu|cuda(?::(?P<index>\d+))?", name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    where = f"BLOCKLENS_DEVICE={name}"
    if asked is None:
        problems.append(Problem(where, "is no device", "Use cpu, cuda or cuda:N, N from 0."))
    elif name != "cpu" and count <= int(asked["index"] or 0):
        what = f"torch {torch.__version__} sees {count} CUDA devices here"
        remedy = "Check `nvidia-smi` and that torch is a CUDA build, or use cpu."
        problems.append(Problem(where, what, remedy))
    problems += number_problems()
    if problems:
        raise HardwareError("The environment asks for what is not here", problems)


def device_name() -> str:
    """Return the device that the environment asks for, or else a GPU where there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return os.environ.get("BLOCKLENS_DEVICE") or default


def device_type() -> str:
    """Return cpu or cuda, as the environment asks; nothing is claimed."""
    return device_name().partition(":")[0]


def cpu_threads() -> int:
    """Return how many threads torch computes with, as the environment asks."""
    require_numbers()
    return int(os.environ.get("BLOCKLENS_THREADS") or torch.get_num_threads())


def rounding() -> str:
    """Return what of this machine decides how sums are rounded: cuda, or the CPU's threads."""
    device = device_type()
    return device if device != "cpu" else f"cpu, {cpu_threads()} threads"


def resident_bytes() -> int:
    """Return the memory in use: on CUDA what torch holds there, else the process's resident set."""
    if device_type() == "cuda":
        return sum(map(torch.cuda.memory_allocated, range(torch.cuda.device_count())))
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
