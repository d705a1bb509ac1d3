"""Names that we know and do not read: what they are, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from stages.adapters.listing import list_names
from stages.contracts.errors import Problem

TEXT_ENCODER: Final = re.compile(
    r"(?:text_encoder(?:_[23])?|text_encoders|text_model|te\d?|bundle_emb)\..+"
    r"|lora_te\d?_.+|lycoris_text_(?:encoder|model)_.+"
    r"|base_model\.model\.text_(?:model|encoder)\..+"
)
"""Weights for the text encoders and their embeddings, which no transformer block is made of."""


@dataclass(frozen=True)
class _Kind:
    """Names of one kind: how they look, what they are, what to do."""

    pattern: re.Pattern[str]
    what: str
    remedy: str


_OTHER_MODEL: Final = "Blocklens reads LoRAs of FLUX.1 and models built like it: use one of these."


def _model(pattern: str, model: str) -> _Kind:
    return _Kind(re.compile(pattern), f"is a LoRA of {model}", _OTHER_MODEL)


_MODELS: Final = (
    _model(
        r"(?:lora_unet_|lycoris_|unet\.|diffusion_model\.)"
        r"(?:(?:down|up|input|output|mid|middle)_blocks?[._]|conv_(?:in|out)|time_embedding).+",
        "Stable Diffusion 1.5, 2 or XL",
    ),
    _model(r"(?:lora_unet_|(?:\w+\.)*)joint_blocks[._].+", "Stable Diffusion 3"),
    _model(
        r"(?:\w+\.)*\w*(?:double_stream_modulation|single_stream_modulation|to_qkv_mlp_proj).+",
        "FLUX.2",
    ),
    _model(r"(?:\w+\.)*\w*distilled_guidance_layer.+", "Chroma"),
    _model(
        r"(?:lora_unet_|(?:diffusion_model|transformer)\.)blocks[._]\d+[._]"
        r"(?:self_attn|cross_attn|ffn|attn[12])[._].+",
        "Wan",
    ),
    _model(
        r"(?:\w+\.)*\w*(?:single|double)_blocks\.\d+\.(?:img|txt)_(?:attn|mod|mlp)_.+",
        "Hunyuan Video",
    ),
    _model(r"(?:\w+\.)*transformer_blocks\.\d+\.(?:img|txt)_(?:mlp|mod)\..+", "Qwen-Image"),
    _model(r"(?:\w+\.)*transformer_blocks\.\d+\.attn[12]\..+", "PixArt, LTX-Video or Sana"),
    _model(r"(?:\w+\.)*(?:layers|noise_refiner|context_refiner)\.\d+\..+", "Lumina or Z-Image"),
    _model(r"(?:\w+\.)*(?:double|single)_stream_blocks\..+", "HiDream"),
)
_KINDS: Final = (
    _Kind(
        re.compile(r".+\.(?:lora_mid\.weight|lokr_t[12]|hada_t[12])"),
        "has Tucker factors of convolutions",
        "FLUX has no convolutions: is this a LoRA for another model?",
    ),
    _Kind(
        re.compile(r".+\.(?:oft_\w+|boft_\w+|glora_\w+|[ab][12]\.weight|on_input|w_norm|b_norm)"),
        "has OFT, BOFT, GLoRA, IA3 or norm keys",
        "LoRA, DoRA, LoHa and LoKr are read: train with one of these.",
    ),
    _Kind(
        re.compile(
            r".+\.(?:lora_[AB]\.bias|lora_(?:up|down)\.bias|diff|diff_b|set_weight|reshape_weight)"
            r"|.+\.norm_(?:added_)?[qk]\.\w+|.+\.(?:query|key)_norm\.\w+"
        ),
        "has bias or norm changes beside the LoRA",
        "They are no change of a Linear layer's weight: use a LoRA trained without them.",
    ),
)

_BASE_FIELDS: Final = ("ss_base_model_version", "modelspec.architecture")
_OURS: Final = re.compile(r"flux(?![-_.]?2).*|flex.*", re.IGNORECASE)


def name_problems(where: str, names: Iterable[str], metadata: Mapping[str, str]) -> list[Problem]:
    """Return what is wrong with names that no grammar has, one problem for each kind of them.

    Args:
        where: the file.
        names: all names that were not read.
        metadata: the file's header, which may name the model.
    """
    found: dict[_Kind, list[str]] = {}
    unknown = []
    for name in sorted(names):
        kinds = (*_MODELS, *_KINDS)
        kind = next((known for known in kinds if known.pattern.fullmatch(name)), None)
        if kind is None:
            unknown.append(name)
        else:
            found.setdefault(kind, []).append(name)
    problems = [
        Problem(where, f"{kind.what}: {list_names(left)}", kind.remedy)
        for kind, left in found.items()
    ]
    if unknown:
        remedy = (
            "Every key must name a Linear layer of FLUX's transformer and a part of its LoRA, as "
            "docs/adapters.md lists them; is this a LoRA for another model?"
        )
        problems.append(Problem(where, f"has unknown keys: {list_names(unknown)}", remedy))
    return problems + _header_problems(where, metadata) if problems else []


def _header_problems(where: str, metadata: Mapping[str, str]) -> list[Problem]:
    """Return what the header says of the model, where it says that it is another one."""
    return [
        Problem(f"{where}, header field {field}", f"says {metadata[field]!r}", _OTHER_MODEL)
        for field in _BASE_FIELDS
        if field in metadata and not _OURS.fullmatch(metadata[field].partition("/")[0])
    ]
