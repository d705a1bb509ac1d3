"""An adapter as kohya-ss/sd-scripts keeps one for FLUX: Black Forest Labs' layers, with alpha.

sd-scripts, networks/lora_flux.py (names, in_dims for layers outside the blocks) and
networks/convert_flux_lora.py, which fuses as is done here. Layers that diffusers holds apart and
kohya as one are put together exactly: where all have one A, the rows of B follow one another; where
not, the ranks add up, A's rows follow one another and B is block-diagonal. files.read_adapter
takes that apart again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from stages.adapters.files import fold_scales, network_fields, unchanged_tensors
from stages.adapters.formats.layers import Layer, original_layer
from stages.adapters.module import Adapter
from stages.adapters.pair import LoraPair
from stages.runtime.tensors import data_sha256, write_safetensors

_PREFIX: Final = "lora_unet_"
_MLP_RATIO: Final = 4  # diffusers, FluxSingleTransformerBlock: proj_mlp is 4 times as wide
_MLP: Final = "proj_mlp"


def write_kohya(path: Path, adapter: Adapter) -> None:
    """Write the adapter in kohya's names; equal adapters make equal bytes.

    Numbers are float32, the scale is in B, and alpha is the rank, which every reader takes for
    scale 1. What is no plain LoRA is written as it came, and text encoders' tensors are not
    written.

    Raises:
        AdapterError: the adapter has no modules.
    """
    folded = fold_scales(path, adapter)
    tensors = unchanged_tensors(adapter)
    fused: dict[str, LoraPair] = {}
    for layer in sorted({original_layer(module) for module in folded}, key=lambda each: each.name):
        pair = _fuse(layer, folded)
        name = _PREFIX + layer.name.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = pair.down
        tensors[f"{name}.lora_up.weight"] = pair.up
        tensors[f"{name}.alpha"] = torch.tensor(float(pair.rank))
        fused[name] = pair
    module = {"ss_network_module": "networks.lora_flux"}
    header = {
        **adapter.metadata,
        **module,
        **network_fields(fused),
        "format": "pt",
        "modelspec.hash_sha256": f"0x{data_sha256(tensors)}",
    }
    write_safetensors(path, tensors, header)


def _fuse(layer: Layer, folded: Mapping[str, LoraPair]) -> LoraPair:
    """Return the pair of a whole layer; modules of it that the adapter lacks have zero rows."""
    present = [module for module in layer.modules if module in folded]
    pairs = [folded[module] for module in present]
    if layer.swapped:
        scale, shift = pairs[0].up.chunk(2)
        return LoraPair(pairs[0].down, torch.cat([shift, scale]), pairs[0].alpha)
    if len(layer.modules) == 1:
        return pairs[0]
    shared = all(
        pair.down.shape == pairs[0].down.shape and torch.equal(pair.down, pairs[0].down)
        for pair in pairs
    )
    rank = pairs[0].rank if shared else sum(pair.rank for pair in pairs)
    rows = _row_counts(layer, folded)
    up = torch.zeros(sum(rows.values()), rank)
    row = column = 0
    for module in layer.modules:
        if module in folded:
            pair = folded[module]
            up[row : row + rows[module], column : column + pair.rank] = pair.up
            column += 0 if shared else pair.rank
        row += rows[module]
    down = pairs[0].down if shared else torch.cat([pair.down for pair in pairs])
    return LoraPair(down, up, float(rank))


def _row_counts(layer: Layer, folded: Mapping[str, LoraPair]) -> dict[str, int]:
    """Return the rows of each module of a fused layer: as many as it has columns, the MLP's apart.

    Where the adapter has the MLP's module, its own rows count.
    """
    columns = next(folded[module].shape[1] for module in layer.modules if module in folded)
    counts = {}
    for module in layer.modules:
        wide = _MLP_RATIO * columns if module.endswith(f".{_MLP}") else columns
        counts[module] = folded[module].shape[0] if module in folded else wide
    return counts
