"""LoRA files: anybody's are read, and written as everybody reads them.

Which formats, and what of them is kept, is in docs/adapters.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from stages.adapters.dora import DoraPair
from stages.adapters.formats.assemble import assemble
from stages.adapters.formats.names import PARTS
from stages.adapters.keys import Key, format_key
from stages.adapters.module import Adapter, Change, origins, plain_pairs
from stages.adapters.pair import LoraPair, Origin
from stages.adapters.patterns import AMBIGUOUS_MODULE, exact_config
from stages.adapters.reading import LoraFile, read_file
from stages.adapters.scales import CONFIG_FIELD, config_text
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

_log = logging.getLogger(__name__)


def read_adapter(path: Path, beside: bool = False) -> Adapter:
    """Return the LoRA in a safetensors file, in float32; for `beside` see `read_file`.

    Every tensor of the file is used, or kept apart with a warning because it is for a text encoder,
    or the call fails.

    Raises:
        AdapterError: the file cannot be read, or its content is no LoRA of a FLUX transformer; all
            problems at once.
    """
    file = read_file(path, beside)
    if file.assumed:
        _log.warning("%s: %s", path, file.assumed)
    if file.apart:
        _log.warning(
            "%s: %d tensors for text encoders are kept apart: pictures here are without them",
            path,
            len(file.apart),
        )
    return build_adapter(file)


def build_adapter(file: LoraFile) -> Adapter:
    """Return what the layers of a file change, by our modules."""
    modules: dict[str, Change] = {}
    for source in file.sources:
        modules |= assemble(source, file.alphas.get(source.layer.name))
    kept = {name: text for name, text in file.metadata.items() if name not in DERIVED_METADATA}
    return Adapter({module: modules[module] for module in sorted(modules)}, kept, file.apart)


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write the adapter as every reader understands it; equal adapters make equal bytes.

    Names are diffusers' with `transformer.`, numbers float32. alpha / rank is multiplied into B
    and no alpha is stated, because readers disagree on where to look for it; with alpha = rank
    every tensor is written unchanged. `ss_network_dim` and `ss_network_alpha` say the same in
    kohya's fields, or `Dynamic` where ranks differ (sd-scripts, networks/resize_lora.py);
    `modelspec.hash_sha256` is that of the data, the header apart (ModelSpec 1.0.1). Only a
    file with the final `proj_out` states its config in the header: without it diffusers guesses
    names by suffix, and PEFT warns of the guess.

    What is no plain LoRA is written as it came, and text encoders' tensors are not written.

    Raises:
        AdapterError: the adapter has no modules; diffusers cannot load such a file.
    """
    folded = fold_scales(path, adapter)
    tensors = unchanged_tensors(adapter)
    for module, pair in folded.items():
        tensors[format_key(Key(module, "down"))] = pair.down
        tensors[format_key(Key(module, "up"))] = pair.up
    header = {
        **adapter.metadata,
        **network_fields(folded),
        "format": "pt",
        "modelspec.hash_sha256": f"0x{data_sha256(tensors)}",
    }
    if AMBIGUOUS_MODULE in folded:
        header[CONFIG_FIELD] = config_text(exact_config(folded))
    write_safetensors(path, tensors, header)


def write_apart(path: Path, adapter: Adapter) -> None:
    """Write the tensors for text encoders as they came, with the adapter's metadata."""
    write_safetensors(path, adapter.apart, {**adapter.metadata, "format": "pt"})


def fold_scales(path: Path, adapter: Adapter) -> dict[str, LoraPair]:
    """Return the plain pairs with the same Delta W and scale 1, float32.

    Raises:
        AdapterError: the adapter has no modules; `path` could not be loaded.
    """
    if not adapter.modules:
        problem = Problem(str(path), "the adapter has no modules", "Keep at least one block.")
        raise AdapterError("The adapter cannot be written", [problem])
    return {module: _fold(pair) for module, pair in plain_pairs(adapter).items()}


def unchanged_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return the tensors of everything that is no plain LoRA, under the names they came with."""
    return {
        name: tensor
        for origin in origins(adapter)
        for name, tensor in _settled(origin, adapter).items()
    }


def _settled(origin: Origin, adapter: Adapter) -> Mapping[str, torch.Tensor]:
    """Return an origin's tensors; a DoRA's scale is folded in, for it may stand in the header."""
    changes = (each for each in adapter.modules.values() if each.origin is origin)
    scale = next((each.pair.scale for each in changes if isinstance(each, DoraPair)), 1.0)
    if origin.kind != "DoRA" or scale == 1.0:
        return origin.tensors
    return {
        name: tensor.float() * scale if name.endswith(PARTS["up"]) else tensor
        for name, tensor in origin.tensors.items()
        if not name.endswith(PARTS["alpha"])
    }


def network_fields(folded: Mapping[str, LoraPair]) -> dict[str, str]:
    """Return kohya's fields on rank and alpha; none where nothing is a plain LoRA."""
    ranks = {pair.rank for pair in folded.values()}
    if len(ranks) > 1:
        return {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}
    return {
        field: text
        for rank in ranks
        for field, text in (("ss_network_alpha", repr(float(rank))), ("ss_network_dim", str(rank)))
    }


def _fold(pair: LoraPair) -> LoraPair:
    up = pair.up if pair.scale == 1.0 else pair.up * pair.scale
    return LoraPair(pair.down.float(), up.float(), float(pair.rank))
