"""Opening a file that someone says is a LoRA: safetensors or nothing.

Layout of a safetensors file (huggingface/safetensors, README.md): 8 bytes header length, little
endian; a JSON header with each tensor's dtype, shape and offsets; the data. Nothing is ever
unpickled: a pickle can run any code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from stages.contracts.errors import AdapterError, Problem

_PICKLE_SUFFIXES: Final = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})
_STARTS: Final = (
    (b"version https://git-lfs", "is a Git LFS pointer", "Run `git lfs pull` in its repository."),
    (b"<", "is a web page, not weights", "Download the file itself; the site may want a login."),
    (b"PK\x03\x04", "is a pickle under another name", ""),
    (b"\x80", "is a pickle under another name", ""),
)
_PICKLE_REMEDY: Final = (
    "Pickles can run code and are never opened: get the .safetensors file, or convert it in a "
    "sandbox with torch.load(..., weights_only=True) and safetensors.torch.save_file."
)


@dataclass(frozen=True, eq=False)
class Container:
    """Named tensors as stored, and the text fields of the header."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def read_container(path: Path) -> Container:
    """Return the tensors of a safetensors file in their stored dtypes, on the CPU.

    Raises:
        AdapterError: the file is missing, a pickle, no safetensors file, or cut short.
    """
    problem = _unopened_problem(path)
    if problem is None:
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Container(tensors, dict(file.metadata() or {}))
        except (SafetensorError, OSError) as error:
            problem = _unreadable_problem(path, error)
    raise AdapterError("The adapter cannot be read", [problem])


def _unopened_problem(path: Path) -> Problem | None:
    where = str(path)
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        return Problem(where, f"is a pickle file ({path.suffix})", _PICKLE_REMEDY)
    if path.is_dir():
        return Problem(where, "is a folder", "Name the .safetensors file in it.")
    if not path.is_file():
        return Problem(where, "does not exist", "Check the path, or train the adapter first.")
    return None


def _unreadable_problem(path: Path, error: Exception) -> Problem:
    where, size = str(path), path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    for magic, what, remedy in _STARTS:
        if start.startswith(magic):
            return Problem(where, what, remedy or _PICKLE_REMEDY)
    remedy = "Copy or download the file again; if it is our own, run `dvc repro --force train`."
    if size == 0:
        return Problem(where, "is empty", remedy)
    return Problem(where, f"is truncated or no safetensors file ({size} bytes; {error})", remedy)
