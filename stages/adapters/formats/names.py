"""The grammar of tensor names in anybody's LoRA file.

    name  = prefix layer "." part
    part  = down | up | alpha | magnitude (DoRA) | hada_… (LoHa) | lokr_… (LoKr), see PARTS

A spelling says which prefix goes with whose words for layers. Every pattern is matched against the
whole name, so that `transformer_blocks.7.` never matches inside `single_transformer_blocks.7.`.
Sources: diffusers, src/diffusers/loaders/lora_conversion_utils.py; ComfyUI, comfy/lora.py
(model_lora_keys_unet); kohya-ss/sd-scripts, networks/lora_flux.py; KohakuBlueleaf/LyCORIS,
lycoris/modules/{loha,lokr}.py; peft, src/peft/utils/save_and_load.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from stages.adapters.formats.layers import Layer, Vocabulary, find_layer


@dataclass(frozen=True)
class Spelling:
    """A way to write names: what we call it, its prefix, whose words, what joins them."""

    title: str
    prefix: str
    vocabulary: Vocabulary
    joiner: str


@dataclass(frozen=True)
class Name:
    """What a tensor is: a part of the adapter of one layer, and how its name is spelled."""

    layer: Layer
    part: str
    spelling: Spelling


SPELLINGS: Final = (
    Spelling("diffusers", "transformer.", "diffusers", "."),
    Spelling("diffusers without prefix", "", "diffusers", "."),
    Spelling("PEFT", "base_model.model.", "diffusers", "."),
    Spelling("PEFT", "base_model.model.transformer.", "diffusers", "."),
    Spelling("diffusers names under ComfyUI's prefix", "diffusion_model.", "diffusers", "."),
    Spelling("OneTrainer", "lora_transformer_", "diffusers", "_"),
    Spelling("LyCORIS", "lycoris_", "diffusers", "_"),
    Spelling("kohya's prefix on diffusers names", "lora_unet_", "diffusers", "_"),
    Spelling("kohya", "lora_unet_", "original", "_"),
    Spelling("LyCORIS on original names", "lycoris_", "original", "_"),
    Spelling("Black Forest Labs", "", "original", "."),
    Spelling("Black Forest Labs under ComfyUI's prefix", "diffusion_model.", "original", "."),
    Spelling("PEFT on original names", "base_model.model.", "original", "."),
    Spelling("XLabs", "", "xlabs", "."),
    Spelling("XLabs under ComfyUI's prefix", "diffusion_model.", "xlabs", "."),
)

PARTS: Final[dict[str, tuple[str, ...]]] = {
    "down": ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight"),
    "up": ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight"),
    "alpha": ("alpha",),
    "magnitude": (
        "dora_scale",
        "lora_magnitude_vector",
        "lora_magnitude_vector.weight",
        "lora_magnitude_vector.default.weight",
    ),
    **{
        part: (part,)
        for part in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        )
    },
}
"""What a tensor is, and the ends of names that say so. A is down, B is up, as in PEFT."""

_XLABS_PARTS: Final = {"down": ("down.weight",), "up": ("up.weight",)}


def read_name(name: str) -> Name | None:
    """Return what the tensor called `name` is, or None where it is in nobody's grammar."""
    for spelling in SPELLINGS:
        if not name.startswith(spelling.prefix):
            continue
        rest = name.removeprefix(spelling.prefix)
        match = _pattern(spelling.vocabulary == "xlabs").fullmatch(rest)
        if match is None:
            continue
        layer = find_layer(match["layer"], spelling.vocabulary, spelling.joiner)
        if layer is not None:
            return Name(layer, _part(match["part"]), spelling)
    return None


@cache
def _pattern(xlabs: bool) -> re.Pattern[str]:
    table = _XLABS_PARTS if xlabs else PARTS
    ends = "|".join(re.escape(end) for ends in table.values() for end in ends)
    return re.compile(rf"(?P<layer>\w+(?:\.\w+)*?)\.(?P<part>{ends})")


def _part(end: str) -> str:
    tables = (*PARTS.items(), *_XLABS_PARTS.items())
    return next(part for part, ends in tables if end in ends)
