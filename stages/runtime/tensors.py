"""Safetensors files whose bytes depend on their content alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

_HEADER_LENGTH_BYTES = 8


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and string metadata to a safetensors file with a sorted header.

    The library's own writer puts several metadata keys in random order (safetensors issue 584),
    so two equal saves can differ. Layout as in the safetensors README: 8 bytes header length,
    JSON header padded with spaces to a multiple of 8, then the data.
    """
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
    if metadata:
        header["__metadata__"] = dict(metadata)
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(_HEADER_LENGTH_BYTES, "little") + text + plain[start:])
