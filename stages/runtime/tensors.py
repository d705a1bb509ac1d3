"""Safetensors files whose bytes depend on their content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from stages.runtime.progress import track

_HEADER_LENGTH_BYTES = 8
DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number formats of model weights, as safetensors names them."""


@dataclass(frozen=True)
class TensorForm:
    """Format (a key of `DTYPES`) and shape of a tensor that is not in memory."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and string metadata to a safetensors file with a sorted header.

    The library's own writer puts several metadata keys in random order (safetensors issue 584),
    so two equal saves can differ. Layout as in the safetensors README: 8 bytes header length,
    JSON header padded with spaces to a multiple of 8, then the data.
    """
    header, data = _serialised(tensors)
    path.write_bytes(_head(header, metadata) + data)


def data_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of what `write_safetensors` writes after the header."""
    return hashlib.sha256(_serialised(tensors)[1]).hexdigest()


def _serialised(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], bytes]:
    """Return the header's entries, and the data that they point into."""
    # A copy of each, because the library refuses tensors that are views of one another.
    copies = {
        name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in sorted(tensors)
    }
    plain = safetensors.torch.save(copies)
    length = int.from_bytes(plain[:_HEADER_LENGTH_BYTES], "little")
    start = _HEADER_LENGTH_BYTES + length
    header: dict[str, Any] = json.loads(plain[_HEADER_LENGTH_BYTES:start])
    header.pop("__metadata__", None)
    return header, plain[start:]


def stream_safetensors(
    path: Path,
    forms: Mapping[str, TensorForm],
    read: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the file that `write_safetensors` writes, with one tensor in memory at a time.

    Raises:
        ValueError: `read` gave a tensor of another form than was said.
    """
    # Wide numbers first, so that each tensor's data begins at a multiple of its item's size.
    names = sorted(forms, key=lambda name: (-DTYPES[forms[name].dtype].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        form = forms[name]
        start, end = end, end + form.size_bytes
        header[name] = {"dtype": form.dtype, "shape": form.shape, "data_offsets": [start, end]}
    with path.open("wb") as file:
        file.write(_head(header, metadata))
        for name in track(names, len(names), f"writing {path.parent.name}/{path.name}"):
            tensor, form = read(name), forms[name]
            if (tensor.dtype, tuple(tensor.shape)) != (DTYPES[form.dtype], form.shape):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {form}")
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _head(header: Mapping[str, Any], metadata: Mapping[str, str] | None) -> bytes:
    """Return what stands before the data: length of the header, sorted header, padding."""
    whole = {**header, "__metadata__": dict(metadata)} if metadata else header
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_HEADER_LENGTH_BYTES, "little") + text
