"""The grammar of tensor names in a LoRA file.

    key    = ["transformer."] module "." part
    module = a Linear layer of a FLUX transformer, as diffusers names it
    part   = "lora_A.weight" | "lora_B.weight" | "alpha"

The names are diffusers' (src/diffusers/loaders/lora_pipeline.py, FluxLoraLoaderMixin): with the
prefix from `pipeline.save_lora_weights` and ai-toolkit, without it from
`transformer.save_lora_adapter`. Every pattern is matched against the whole name, so that
`transformer_blocks.7.` never matches inside `single_transformer_blocks.7.`.

A key outside the grammar is refused, never skipped. Another format joins as a function from its
named tensors to names of this grammar, which `files.read_adapter` calls before this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from stages.adapters.listing import list_names
from stages.contracts.errors import Problem
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


@dataclass(frozen=True)
class _Refusal:
    """Names that we know and do not read: how they look, what they are, what to do."""

    pattern: re.Pattern[str]
    what: str
    remedy: str


_CONVERT: Final = "Convert the file to diffusers names first"
_REFUSALS: Final = (
    _Refusal(
        re.compile(r"(?:text_encoder(?:_2)?|text_model|te\d?)\..+|lora_te\d?_.+"),
        "text-encoder keys",
        "Blocklens reads LoRAs of the transformer alone: save a copy that keeps only the keys "
        "beginning with `transformer.` (its pictures may differ), or train without text encoders.",
    ),
    _Refusal(
        re.compile(r".+\.(?:lora_magnitude_vector(?:\..+)?|dora_scale)"),
        "DoRA magnitudes",
        "DoRA is not linear in its strength, so its blocks have no shares: use a plain LoRA.",
    ),
    _Refusal(
        re.compile(r".+\.(?:lokr_\w+|hada_\w+|lora_mid\.weight|oft_\w+)"),
        "LoKr, LoHa or OFT keys",
        "Only plain LoRA is read: train with the network type `lora`.",
    ),
    _Refusal(
        re.compile(r".+\.(?:lora_B\.bias|diff|diff_b|set_weight)|.+\.norm_(?:added_)?[qk]\.\w+"),
        "bias or norm changes beside the LoRA",
        "They are no low-rank change of a Linear layer: use a LoRA trained without them.",
    ),
    _Refusal(
        re.compile(r"(?:lora_unet|lora_transformer|lycoris)_.+"),
        "keys in kohya's or LyCORIS' names",
        f"{_CONVERT}, for example with networks/convert_flux_lora.py of kohya-ss/sd-scripts.",
    ),
    _Refusal(
        re.compile(r"(?:diffusion_model\.)?(?:double|single)_blocks\..+|diffusion_model\..+"),
        "keys in Black Forest Labs' or XLabs' names",
        f"{_CONVERT}: load it in diffusers' FluxPipeline and call save_lora_weights.",
    ),
    _Refusal(
        re.compile(r"base_model\.model\..+"),
        "keys as PEFT's own save_pretrained names them",
        f"{_CONVERT}: replace the leading `base_model.model.` by `transformer.`.",
    ),
)


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


def parse_keys(names: Iterable[str], where: str) -> tuple[dict[Key, str], list[Problem]]:
    """Return the name of every key, and what is wrong with the names that are left over."""
    keys: dict[Key, str] = {}
    left: dict[_Refusal, list[str]] = {}
    unknown: list[str] = []
    twice: list[str] = []
    for name in sorted(names):
        refusal = next((known for known in _REFUSALS if known.pattern.fullmatch(name)), None)
        if refusal is not None:
            left.setdefault(refusal, []).append(name)
            continue
        try:
            key = parse_key(name)
        except ValueError:
            unknown.append(name)
            continue
        if key in keys:
            twice += [keys[key], name]
        keys[key] = name
    return keys, _key_problems(where, left, unknown, twice)


def _key_problems(
    where: str, left: dict[_Refusal, list[str]], unknown: list[str], twice: list[str]
) -> list[Problem]:
    problems = [
        Problem(where, f"has {refusal.what}: {list_names(names)}", refusal.remedy)
        for refusal, names in left.items()
    ]
    if unknown:
        remedy = (
            "Every key must be [transformer.]MODULE.lora_A.weight, .lora_B.weight or .alpha, where "
            "MODULE is a Linear layer of FLUX's transformer; is this a LoRA for another model?"
        )
        problems.append(Problem(where, f"has unknown keys: {list_names(unknown)}", remedy))
    if twice:
        remedy = "Keep one of each: a name with and the same name without `transformer.` are one."
        problems.append(Problem(where, f"has keys twice: {list_names(twice)}", remedy))
    return problems
