"""A LoRA file in another format; docs/adapters.md says what is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from stages.adapters.files import read_adapter, write_adapter, write_apart
from stages.adapters.kohya_file import write_kohya
from stages.adapters.module import Adapter, origins
from stages.contracts.errors import AdapterError, Problem
from stages.runtime.files import write_whole

APART_SUFFIX: Final = "-text-encoders.safetensors"
"""What the file beside the written one ends in, if the source has weights for text encoders."""


def to_kohya(file: Path, out: Path) -> str:
    """Write the LoRA in kohya's format and return what was done.

    Raises:
        AdapterError: `file` is no LoRA that we read, or `out` exists.
    """
    return _convert(file, out, write_kohya)


def to_diffusers(file: Path, out: Path) -> str:
    """Write the LoRA in diffusers' format and return what was done.

    Raises:
        AdapterError: `file` is no LoRA that we read, or `out` exists.
    """
    return _convert(file, out, write_adapter)


def _convert(file: Path, out: Path, write: Callable[[Path, Adapter], None]) -> str:
    adapter = read_adapter(file, beside=True)
    beside = out.with_name(out.name.removesuffix(".safetensors") + APART_SUFFIX)
    files = [(out, write)] + ([(beside, write_apart)] if adapter.apart else [])
    if problems := [
        Problem(str(path), "exists already", "Name another file, or remove it.")
        for path, _ in files
        if path.exists()
    ]:
        raise AdapterError("The adapter is not written", problems)
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, writer in files:
        write_whole(path, partial(_write, writer, adapter))
    told = [f"{out}: {len(adapter.modules)} layers in {len(adapter.blocks)} blocks"]
    if adapter.apart:
        told.append(f"{beside}: {len(adapter.apart)} tensors for text encoders, as they came")
    if kept := origins(adapter):
        told.append(f"{len(kept)} layers are no plain LoRA and are written as they came")
    return "\n".join(told)


def _write(write: Callable[[Path, Adapter], None], adapter: Adapter, path: Path) -> None:
    write(path, adapter)
