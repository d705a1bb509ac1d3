"""The names of tensors in the LoRA files that we write; formats/names.py reads everybody's.

    key    = ["transformer."] module "." part
    module = a Linear layer of a FLUX transformer, as diffusers names it
    part   = "lora_A.weight" | "lora_B.weight" | "alpha"

The names are diffusers' (src/diffusers/loaders/lora_pipeline.py, FluxLoraLoaderMixin): with the
prefix from `pipeline.save_lora_weights` and ai-toolkit, without it from
`transformer.save_lora_adapter`. Every pattern is matched against the whole name, so that
`transformer_blocks.7.` never matches inside `single_transformer_blocks.7.`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from stages.families.architecture import block_of

Part = Literal["down", "up", "alpha"]

_PREFIX: Final = "transformer."
_SUFFIX: Final[dict[Part, str]] = {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}
_PART: Final[dict[str, Part]] = {suffix: part for part, suffix in _SUFFIX.items()}
_KEY: Final = re.compile(
    r"(?:transformer\.)?(?P<module>\w+(?:\.\w+)*?)\.(?P<suffix>lora_[AB]\.weight|alpha)"
)


@dataclass(frozen=True, order=True)
class Key:
    """What a tensor of a LoRA file is: a part of the adapter of one module."""

    module: str
    part: Part


def parse_key(name: str) -> Key:
    """Return what the tensor called `name` is.

    Raises:
        ValueError: the name is not in the grammar.
    """
    match = _KEY.fullmatch(name)
    if match is None:
        raise ValueError(f"not a LoRA key: {name!r} (expected [transformer.]MODULE.lora_A.weight)")
    block_of(match["module"])  # raises where no FLUX transformer has such a layer
    return Key(match["module"], _PART[match["suffix"]])


def format_key(key: Key) -> str:
    """Return the name under which we write a tensor; `parse_key` is the inverse."""
    return f"{_PREFIX}{key.module}.{_SUFFIX[key.part]}"
