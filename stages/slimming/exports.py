"""The chosen blocks in the words of other programs: to train just those, or to weigh a full file.

Sources: ostris/ai-toolkit, toolkit/lora_special.py (`only_if_contains`: parts of a layer's name);
kohya-ss/sd-scripts, networks/lora_flux.py (`train_double_block_indices`: all, none or ranges);
ltdrdata/ComfyUI-Inspire-Pack, inspire/lora_block_weight.py (a vector: base first, then the blocks
present in order; a short one goes on with its last value, hence all are written).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from stages.contracts.blocks import BASE, BlockId, Stack
from stages.lens.interaction import Array

_LAYERS: Final[dict[Stack, str]] = {
    "double": "transformer.transformer_blocks.",
    "single": "transformer.single_transformer_blocks.",
}
_BASE_TOO: Final = "# base is kept, too, and has no name here: its layers are not among these.\n"
_BASE_ALONE: Final = (
    "# Only base is kept, and it has no name here. An empty list would mean every block, so there\n"
    "# is none: these blocks cannot be trained again.\n"
)


def retraining_files(blocks: Sequence[BlockId], strengths: Array) -> dict[str, str]:
    """Return file names and texts: settings for three trainers, and the vector for ComfyUI.

    No trainer's settings name `base`: where it is kept, they say so in a comment.

    Args:
        blocks: those of the full file, in model order.
        strengths: of each [blocks], 0 for those left out.
    """
    kept = [block for block, strength in zip(blocks, strengths, strict=True) if strength != 0.0]
    named = [block for block in kept if block != BASE]
    note = _BASE_TOO if BASE in kept else ""
    return {
        "params.yaml": note + _ours(named) if named else _BASE_ALONE,
        "ai-toolkit.yaml": note + _ai_toolkit(named) if named else _BASE_ALONE,
        "kohya.txt": note + _kohya(named),
        "inspire.txt": inspire_vector(blocks, strengths),
    }


def inspire_vector(blocks: Sequence[BlockId], strengths: Array) -> str:
    """Return the block vector with which the full file acts like the slim one.

    One value for `base`, then one per numbered block of the file: 58 for all of FLUX.1. It is not
    for the slim file, whose blocks would take the values of others.
    """
    values = dict(zip(blocks, strengths.tolist(), strict=True))
    numbered = [values[block] for block in blocks if block != BASE]
    return ",".join(f"{value:g}" for value in (values.get(BASE, 1.0), *numbered)) + "\n"


def index_ranges(blocks: Sequence[BlockId], stack: Stack) -> list[str]:
    """Return the indices of a stack's blocks as ranges: `0-3`, `7`."""
    indices = sorted(block.index for block in blocks if block.stack == stack)
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][-1] + 1:
            ranges[-1].append(index)
        else:
            ranges.append([index])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ranges]


def _ours(kept: Sequence[BlockId]) -> str:
    patterns = [f"{stack}.{part}" for stack in _LAYERS for part in index_ranges(kept, stack)]
    return f"train:\n  blocks: {json.dumps(patterns)}\n"


def _ai_toolkit(kept: Sequence[BlockId]) -> str:
    """Return the network section; the last dot keeps block 1 from meaning 10 to 19, too."""
    parts = [f"{_LAYERS[block.stack]}{block.index}." for block in kept]
    lines = "".join(f"      - {json.dumps(part)}\n" for part in parts)
    return f"network:\n  type: lora\n  network_kwargs:\n    only_if_contains:\n{lines}"


def _kohya(kept: Sequence[BlockId]) -> str:
    """Return the flag; it must be given once, since a second one replaces the first."""
    values = {stack: ",".join(index_ranges(kept, stack)) or "none" for stack in _LAYERS}
    return (
        f'--network_args "train_double_block_indices={values["double"]}"'
        f' "train_single_block_indices={values["single"]}"\n'
    )
