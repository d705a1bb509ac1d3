"""What ai-toolkit and kohya's sd-scripts call the things that our params name.

Sources: ostris/ai-toolkit at 27a03a91f23eb1b757d5ec2e80ee3e129cfcc350 (toolkit/config_modules.py,
toolkit/optimizer.py, config/examples/train_lora_flux_24gb.yaml); kohya-ss/sd-scripts at
48d368fa557731ad0488c07304dfeba8c07910eb (docs/flux_train_network.md, docs/config_README-en.md,
networks/lora_flux.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Final

from stages.contracts.block_patterns import BlockPattern
from stages.contracts.blocks import Stack
from stages.contracts.params import Params

LAYERS: Final[MappingProxyType[Stack, str]] = MappingProxyType(
    {
        "double": "transformer.transformer_blocks.",
        "single": "transformer.single_transformer_blocks.",
    }
)
COUNTS: Final[MappingProxyType[Stack, int]] = MappingProxyType({"double": 19, "single": 38})
"""FLUX.1's; a pattern without an end goes as far."""

AI_TOOLKIT_OPTIMISERS: Final = MappingProxyType(
    {
        "adamw": "adamw",
        "adamw8bit": "adamw8bit",
        "adafactor": "adafactor",
        "lion": "lion",
        "prodigy": "prodigy",
    }
)
AI_TOOLKIT_PRECISIONS: Final = MappingProxyType({"bfloat16": "bf16", "float32": "fp32"})
AI_TOOLKIT_QUANTISATIONS: Final = MappingProxyType({"fp8": "qfloat8", "int8": "qint8"})
"""Of `model.qtype`, which is qfloat8 where a file says no more than `quantize: true`."""
AI_TOOLKIT_TIMESTEPS: Final = MappingProxyType({"sigmoid": "sigmoid", "uniform": "linear"})
KOHYA_OPTIMISERS: Final = MappingProxyType(
    {
        "adamw": "AdamW",
        "adamw8bit": "AdamW8bit",
        "adafactor": "AdaFactor",
        "lion": "Lion",
        "prodigy": "Prodigy",
        "schedule-free-adamw": "AdamWScheduleFree",
    }
)

TRAINING: Final = "training"
REGULARISATION: Final = "regularisation"
"""Sub-folders of the data set that stage caption writes for trainers (captioning/trainers.py)."""

_OURS_ALONE: Final[tuple[tuple[str, object], ...]] = (
    ("caption_dropout", None),
    ("adapter_dropout", 0.0),
    ("masked_loss", False),
    ("output_preservation", 0.0),
    ("ema_decay", 0.0),
    ("loss_weighting", "none"),
    ("block_settings", []),
    ("phases", []),
    ("training_adapter", None),
)


def block_indices(patterns: Sequence[str], stack: Stack) -> list[int]:
    """Return the indices of a stack that train.blocks names; all of them where it is empty."""
    if not patterns:
        return list(range(COUNTS[stack]))
    found: set[int] = set()
    for text in patterns:
        pattern = BlockPattern.parse(text)
        if pattern.stack == stack:
            last = COUNTS[stack] - 1 if pattern.last is None else pattern.last
            found |= set(range(pattern.first, last + 1))
    return sorted(found)


def index_ranges(indices: Iterable[int]) -> list[str]:
    """Return indices as ranges: `0-3`, `7`."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]


def left_behind(params: Params, carried: Iterable[str]) -> list[str]:
    """Return what of the training params has an effect, but is not among those carried."""
    taken = set(carried)
    remarks = [
        f"train.{key}: {getattr(params.train, key)!r}"
        for key, neutral in _OURS_ALONE
        if key not in taken and getattr(params.train, key) != neutral
    ]
    if params.train.steps == "auto":
        remarks.append("train.steps: auto (the default of the other trainer is taken)")
    if params.train.targets not in ("all", "kohya"):
        remarks.append(f"train.targets: {params.train.targets} (every Linear of a block is)")
    return [
        *remarks,
        "validation on held-out pictures, the choice of a checkpoint and exact resuming: not there",
    ]
