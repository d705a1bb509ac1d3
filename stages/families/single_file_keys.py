"""Names of tensors in FLUX's original single files, and which of ours each of them holds.

Original names: black-forest-labs/flux, src/flux/model.py, modules/layers.py and
modules/autoencoder.py; ours: diffusers' and transformers' modules. The reference that this is
tested against is diffusers' loaders/single_file_utils.py, which itself splits the single blocks
at FLUX.1's width whatever the config says, and leaves unknown keys unmentioned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from stages.families.architecture import Architecture
from stages.families.original_names import (
    BASE_LAYERS,
    DOUBLE_LAYERS,
    GUIDANCE_LAYERS,
    SINGLE_LAYERS,
)

SWAPPED: Final = re.compile(r"norm_out\.linear\.(?:weight|bias)")
"""Ours that hold (scale, shift) where the original has (shift, scale)."""

NEEDLESS: Final = re.compile(
    # Counted anew by every version of transformers; and heads of the joint CLIP and T5 models,
    # which FLUX does not use: some collections ship its text encoders with them.
    r"(?:text_model\.)?embeddings\.position_ids|text_projection(?:\.weight)?|logit_scale"
    r"|encoder\.embed_tokens\.weight"
)
"""Keys of text encoder files that nothing is lost with. T5's last one is `shared.weight` again."""

PREFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("text_model.",),
    "text_encoder_2": (),
}
"""What some programs put before every key of a component's file."""

_DOUBLE_NORMS: Final = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE_NORMS: Final = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}

_ATTENTION: Final = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_RESNET: Final = {"conv_shortcut": "nin_shortcut"}


def transformer_keys(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Return, for each original key, ours whose rows follow one another in it."""
    found = _linear("", "", BASE_LAYERS | (GUIDANCE_LAYERS if architecture.guidance else {}))
    for index in range(architecture.double_blocks):
        theirs, ours = f"double_blocks.{index}.", f"transformer_blocks.{index}."
        found |= _linear(theirs, ours, DOUBLE_LAYERS) | _norms(theirs, ours, _DOUBLE_NORMS)
    for index in range(architecture.single_blocks):
        theirs, ours = f"single_blocks.{index}.", f"single_transformer_blocks.{index}."
        found |= _linear(theirs, ours, SINGLE_LAYERS) | _norms(theirs, ours, _SINGLE_NORMS)
    return found


def autoencoder_keys(ours: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return, for each original key, the one of ours that it is.

    Raises:
        ValueError: an AutoencoderKL of FLUX's kind has no tensor of that name.
    """
    names = sorted(ours)
    ups = {match[1] for name in names if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))}
    return {_original_autoencoder_key(name, len(ups)): (name,) for name in names}


def text_encoder_keys(ours: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the keys of a text encoder: the original is transformers' own."""
    return {name: (name,) for name in ours}


def _linear(
    theirs: str, ours: str, layers: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    return {
        f"{theirs}{layer}.{leaf}": tuple(f"{ours}{part}.{leaf}" for part in parts)
        for layer, parts in layers.items()
        for leaf in ("weight", "bias")
    }


def _norms(theirs: str, ours: str, norms: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}{name}.scale": (f"{ours}{norm}.weight",) for name, norm in norms.items()}


def _original_autoencoder_key(name: str, up_blocks: int) -> str:
    """Return the original name of an AutoencoderKL's tensor.

    The original counts the decoder's blocks from the outside in, and a middle's resnets from 1.
    """
    outside_in = partial(_from_outside, up_blocks)
    rules: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
        (r"(?:(?:en|de)coder\.conv_(?:in|out)|(?:post_)?quant_conv)", lambda m: m[0]),
        (r"(encoder|decoder)\.conv_norm_out", lambda m: f"{m[1]}.norm_out"),
        (
            r"(encoder|decoder)\.mid_block\.resnets\.([01])\.(norm[12]|conv[12])",
            lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}.{m[3]}",
        ),
        (
            r"(encoder|decoder)\.mid_block\.attentions\.0\.(group_norm|to_[qkv]|to_out\.0)",
            lambda m: f"{m[1]}.mid.attn_1.{_ATTENTION[m[2]]}",
        ),
        (
            r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(norm[12]|conv[12]|conv_shortcut)",
            lambda m: f"encoder.down.{m[1]}.block.{m[2]}.{_RESNET.get(m[3], m[3])}",
        ),
        (
            r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv",
            lambda m: f"encoder.down.{m[1]}.downsample.conv",
        ),
        (
            r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(norm[12]|conv[12]|conv_shortcut)",
            lambda m: f"decoder.up.{outside_in(m[1])}.block.{m[2]}.{_RESNET.get(m[3], m[3])}",
        ),
        (
            r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.conv",
            lambda m: f"decoder.up.{outside_in(m[1])}.upsample.conv",
        ),
    )
    layer, _, leaf = name.rpartition(".")
    for pattern, original in rules:
        if match := re.fullmatch(pattern, layer):
            return f"{original(match)}.{leaf}"
    raise ValueError(f"no autoencoder of FLUX's kind has a tensor called {name!r}")


def _from_outside(blocks: int, index: str) -> int:
    return blocks - 1 - int(index)
