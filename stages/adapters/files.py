"""LoRA files: any that follow the key grammar are read, one form is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from stages.adapters.container import read_container
from stages.adapters.keys import Key, format_key, parse_keys
from stages.adapters.listing import list_names
from stages.adapters.module import Adapter, LoraPair
from stages.adapters.patterns import AMBIGUOUS_MODULE, exact_config
from stages.adapters.scales import CONFIG_FIELD, config_text, read_alphas
from stages.contracts.errors import AdapterError, Problem
from stages.runtime.tensors import data_sha256, write_safetensors

DERIVED_METADATA: Final = frozenset(
    {
        CONFIG_FIELD,
        "format",
        "modelspec.hash_sha256",
        "ss_network_alpha",
        "ss_network_dim",
        "sshs_legacy_hash",
        "sshs_model_hash",
    }
)
"""Header fields about a file's own scale or bytes: they would be wrong in any other file."""

_DTYPES: Final = frozenset({torch.float32, torch.float16, torch.bfloat16})
_MATRIX_AXES = 2


def read_adapter(path: Path) -> Adapter:
    """Return the LoRA in a safetensors file, in float32.

    Every tensor of the file is used or the call fails.

    Raises:
        AdapterError: the file cannot be read, or its content is no plain LoRA of a FLUX
            transformer; all problems at once.
    """
    container = read_container(path)
    where = str(path)
    keys, problems = parse_keys(container.tensors, where)
    tensors = {key: container.tensors[name] for key, name in keys.items()}
    problems += _pair_problems(where, tensors)
    problems += _value_problems(where, tensors)
    if not container.tensors:
        problems.append(Problem(where, "holds no tensors", "Name a LoRA file."))
    ranks = _ranks(tensors)
    stated = {key.module: alpha for key, alpha in tensors.items() if key.part == "alpha"}
    alphas, alpha_problems = read_alphas(stated, container.metadata, ranks)
    problems += [replace(each, where=f"{where}, {each.where}") for each in alpha_problems]
    if problems:
        raise AdapterError("The adapter cannot be used", problems)
    modules = {module: _pair(tensors, module, alphas[module]) for module in sorted(ranks)}
    kept = {name: text for name, text in container.metadata.items() if name not in DERIVED_METADATA}
    return Adapter(modules, kept)


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write the adapter as every reader understands it; equal adapters make equal bytes.

    Names are diffusers' with `transformer.`, numbers float32. alpha / rank is multiplied into B
    and no alpha is stated, because readers disagree on where to look for it; with alpha = rank
    every tensor is written unchanged. `ss_network_dim` and `ss_network_alpha` say the same in
    kohya's fields, or `Dynamic` where ranks differ (sd-scripts, networks/resize_lora.py);
    `modelspec.hash_sha256` is that of the data, the header apart (ModelSpec 1.0.1). Only a
    file with the final `proj_out` states its config in the header: without it diffusers guesses
    names by suffix, and PEFT warns of the guess.

    Raises:
        AdapterError: the adapter has no modules; diffusers cannot load such a file.
    """
    if not adapter.modules:
        problem = Problem(str(path), "the adapter has no modules", "Keep at least one block.")
        raise AdapterError("The adapter cannot be written", [problem])
    folded = {module: _fold(pair) for module, pair in adapter.modules.items()}
    tensors: dict[str, torch.Tensor] = {}
    for module, pair in folded.items():
        tensors[format_key(Key(module, "down"))] = pair.down
        tensors[format_key(Key(module, "up"))] = pair.up
    header = {
        **adapter.metadata,
        **_network_fields(folded),
        "format": "pt",
        "modelspec.hash_sha256": f"0x{data_sha256(tensors)}",
    }
    if AMBIGUOUS_MODULE in folded:
        header[CONFIG_FIELD] = config_text(exact_config(folded))
    write_safetensors(path, tensors, header)


def _network_fields(folded: Mapping[str, LoraPair]) -> dict[str, str]:
    ranks = {pair.rank for pair in folded.values()}
    if len(ranks) > 1:
        return {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}
    rank = ranks.pop()
    return {"ss_network_alpha": repr(float(rank)), "ss_network_dim": str(rank)}


def _fold(pair: LoraPair) -> LoraPair:
    """Return the pair with the same Delta W and scale 1, float32."""
    up = pair.up if pair.scale == 1.0 else pair.up * pair.scale
    return LoraPair(pair.down.float(), up.float(), float(pair.rank))


def _pair(tensors: Mapping[Key, torch.Tensor], module: str, alpha: float) -> LoraPair:
    down, up = tensors[Key(module, "down")], tensors[Key(module, "up")]
    return LoraPair(down.float(), up.float(), alpha)


def _pair_problems(where: str, tensors: Mapping[Key, torch.Tensor]) -> list[Problem]:
    """Return what is wrong between the parts of a module: partners, shapes, ranks."""
    downs, ups, alphas = (
        {key.module: tensor for key, tensor in tensors.items() if key.part == part}
        for part in ("down", "up", "alpha")
    )
    partner = "Each module needs lora_A and lora_B; the file is incomplete, get it again."
    found = {
        "lora_A without lora_B": (downs.keys() - ups.keys(), partner),
        "lora_B without lora_A": (ups.keys() - downs.keys(), partner),
        "alpha without matrices": (alphas.keys() - downs.keys() - ups.keys(), partner),
    }
    unequal = {
        f"{module} (A {list(downs[module].shape)}, B {list(ups[module].shape)})"
        for module in downs.keys() & ups.keys()
        if not _is_pair(downs[module], ups[module])
    }
    found["rank mismatch"] = (unequal, "A must be [rank, in] and B [out, rank] with one rank.")
    return [
        Problem(where, f"{what}: {list_names(names)}", remedy)
        for what, (names, remedy) in found.items()
        if names
    ]


def _ranks(tensors: Mapping[Key, torch.Tensor]) -> dict[str, int]:
    """Return the rank of every module whose two matrices fit each other."""
    downs = {key.module: tensor for key, tensor in tensors.items() if key.part == "down"}
    ups = {key.module: tensor for key, tensor in tensors.items() if key.part == "up"}
    return {
        module: len(downs[module])
        for module in sorted(downs.keys() & ups.keys())
        if _is_pair(downs[module], ups[module])
    }


def _is_pair(down: torch.Tensor, up: torch.Tensor) -> bool:
    if down.ndim != _MATRIX_AXES or up.ndim != _MATRIX_AXES:
        return False
    return down.shape[0] == up.shape[1] and down.numel() > 0 and up.numel() > 0


def _value_problems(where: str, tensors: Mapping[Key, torch.Tensor]) -> list[Problem]:
    """Return what is wrong with numbers: formats that we do not read, NaN and infinity."""
    odd = {
        f"{format_key(key)} ({str(tensor.dtype).removeprefix('torch.')})"
        for key, tensor in tensors.items()
        if key.part != "alpha" and tensor.dtype not in _DTYPES
    }
    broken = {
        format_key(key)
        for key, tensor in tensors.items()
        if key.part != "alpha" and tensor.dtype in _DTYPES and not torch.isfinite(tensor).all()
    }
    problems = []
    if odd:
        remedy = "Save the adapter in float32, float16 or bfloat16."
        problems.append(Problem(where, f"unreadable number formats: {list_names(odd)}", remedy))
    if broken:
        remedy = "Training diverged: take an earlier checkpoint, or train at a lower learning rate."
        problems.append(Problem(where, f"NaN or infinity in: {list_names(broken)}", remedy))
    return problems
