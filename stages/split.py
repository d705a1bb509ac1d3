"""Take an adapter apart: one LoRA file per transformer block, and an index of what is in each.

Reads:   the adapter (--adapter), the base model's manifest (--weights); of the base weights only
         the matrices that the adapter changes, one at a time.
Writes:  blocks/<block>.safetensors, index.csv (SPLIT_INDEX; blocks that are not present have no
         row), metrics.json, and apart/: index.csv (APART) of the weights for text encoders, which
         belong to no block, and text-encoders.safetensors if there are any.
Params:  none of its own: dvc.yaml fills --adapter from split.adapter.

Also, without base weights: `python -m stages.split inspect FILE` shows what is in a LoRA file,
`python -m stages.split to-kohya FILE OUT` and `to-diffusers FILE OUT` write it in another format.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stages.adapters.base_weights import open_linear_weights
from stages.adapters.compatibility import require_fit
from stages.adapters.conversion import to_diffusers, to_kohya
from stages.adapters.files import read_adapter, write_adapter, write_apart
from stages.adapters.inspection import inspect
from stages.adapters.module import Adapter
from stages.adapters.norms import BlockNorm, block_norms
from stages.adapters.partition import split_by_block
from stages.contracts.blocks import BlockId
from stages.contracts.tables import APART, SPLIT_INDEX, write_table
from stages.families.architecture import Architecture, read_architecture
from stages.families.weights import ensure_weights
from stages.runtime.console import Command, run_stage
from stages.runtime.files import write_json
from stages.runtime.outputs import replace_folder

_log = logging.getLogger(__name__)


def split(*, weights: Path, adapter: Path, out: Path) -> None:
    """Write one adapter per block of `adapter`, an index and metrics into `out`."""
    source = read_adapter(adapter)
    folder = ensure_weights(weights)
    architecture = read_architecture(folder)
    absent = len(set(architecture.blocks) - set(source.blocks))
    with open_linear_weights(folder) as linears:
        require_fit(source, linears.shapes)
        _log.info("%s: %s; %d blocks not present", adapter, _summary(source), absent)
        norms = block_norms(source, linears.read)
    parts = split_by_block(source)
    with replace_folder(out) as work:
        (work / "blocks").mkdir()
        (work / "apart").mkdir()
        names = pd.DataFrame({"tensor": pd.Series(sorted(source.apart), dtype="str")})
        write_table(APART, names, work / "apart" / "index.csv")
        if source.apart:
            write_apart(work / "apart" / "text-encoders.safetensors", source)
        for block, part in parts.items():
            write_adapter(_block_file(work, block), part)
        write_table(SPLIT_INDEX, _index(work, parts, norms), work / "index.csv")
        metrics = _metrics(source, norms, architecture)
        write_json(work / "metrics.json", {**metrics, "blocks_absent": absent})


def _index(
    work: Path, parts: Mapping[BlockId, Adapter], norms: Mapping[BlockId, BlockNorm]
) -> pd.DataFrame:
    rows = [
        {
            "block": str(block),
            "modules": len(part.modules),
            "rank": part.rank,
            "parameters": part.parameters,
            "bytes": _block_file(work, block).stat().st_size,
            "norm": norms[block].delta,
            "relative_norm": norms[block].relative,
        }
        for block, part in parts.items()
    ]
    return pd.DataFrame(rows)


def _metrics(
    source: Adapter, norms: Mapping[BlockId, BlockNorm], architecture: Architecture
) -> dict[str, int]:
    """Return counts; a block that is absent has no tensors, one that is zero has no effect."""
    return {
        "blocks_present": len(source.blocks),
        "blocks_zero": sum(norm.delta == 0.0 for norm in norms.values()),
        "double_blocks": architecture.double_blocks,
        "single_blocks": architecture.single_blocks,
        "modules": len(source.modules),
        "parameters": source.parameters,
        "tensors_apart": len(source.apart),
    }


def _block_file(work: Path, block: BlockId) -> Path:
    return work / "blocks" / f"{block}.safetensors"


def _summary(source: Adapter) -> str:
    return f"{len(source.modules)} modules in {len(source.blocks)} blocks, rank {source.rank}"


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        split,
        sections=(),
        paths=("weights", "adapter", "out"),
        commands={
            "inspect": Command(inspect, ("file",)),
            "to-kohya": Command(to_kohya, ("file", "out")),
            "to-diffusers": Command(to_diffusers, ("file", "out")),
        },
    )


if __name__ == "__main__":
    main()
