"""The FLUX transformer as data: its blocks, its Linear layers and their names.

Names are those of diffusers' FluxTransformer2DModel (diffusers,
src/diffusers/models/transformers/transformer_flux.py). Counts are read from the model's own
config: FLUX.1 has 19 double and 38 single blocks, Flex.1-alpha 8 and 38.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from stages.contracts.blocks import BASE, BlockId, numbered_blocks
from stages.contracts.errors import Problem, WeightsError

Targets = Literal["all", "attention", "attention+mlp", "kohya"]

_DOUBLE: Final[dict[str, tuple[str, ...]]] = {
    "attention": (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_out.0",
        "attn.to_add_out",
    ),
    "mlp": ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    "modulation": ("norm1.linear", "norm1_context.linear"),
}
_SINGLE: Final[dict[str, tuple[str, ...]]] = {
    "attention": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "mlp": ("proj_mlp", "proj_out"),
    "modulation": ("norm.linear",),
}
_GROUPS: Final[dict[Targets, tuple[str, ...]]] = {
    "all": ("attention", "mlp", "modulation"),
    "attention": ("attention",),
    "attention+mlp": ("attention", "mlp"),
    "kohya": ("attention", "mlp", "modulation"),
}
# Black Forest Labs' Linear layers that diffusers holds as several: img_attn.qkv, txt_attn.qkv, and
# linear1 of a single block (diffusers, scripts/convert_flux_to_diffusers.py).
_FUSED_DOUBLE: Final = (
    ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
)
_FUSED_SINGLE: Final = (("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),)
_BASE_MODULE: Final = re.compile(
    r"x_embedder|context_embedder|norm_out\.linear|proj_out"
    r"|time_text_embed\.(?:timestep|text|guidance)_embedder\.linear_[12]"
)
_BLOCK_MODULE: Final = re.compile(r"(single_)?transformer_blocks\.(0|[1-9]\d*)\.(.+)")
_LATENT_PATCH: Final = 4  # 2x2 latent pixels make one token


@dataclass(frozen=True)
class Architecture:
    """What of a FLUX transformer the rest of the house needs to know."""

    double_blocks: int
    single_blocks: int
    width: int
    latent_channels: int
    guidance: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the architecture that a FluxTransformer2DModel config describes."""
        return cls(
            double_blocks=config["num_layers"],
            single_blocks=config["num_single_layers"],
            width=config["num_attention_heads"] * config["attention_head_dim"],
            latent_channels=config["in_channels"] // _LATENT_PATCH,
            guidance=config["guidance_embeds"],
        )

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """All numbered blocks in the order the model runs them."""
        return numbered_blocks(self.double_blocks, self.single_blocks)


def read_architecture(folder: Path) -> Architecture:
    """Return the architecture of the diffusers pipeline folder `folder`.

    Raises:
        WeightsError: there is no transformer config, or it is not FLUX's.
    """
    path = folder / "transformer" / "config.json"
    try:
        return Architecture.from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        problem = Problem(
            str(path), f"not a FLUX transformer config ({error!r})", "Check params fetch."
        )
        raise WeightsError("The base model cannot be read", [problem]) from error


def block_of(module: str) -> BlockId:
    """Return the block that a transformer's Linear layer belongs to.

    `transformer_blocks.7.attn.to_q` is in `double.7`; `proj_out` is in `base`, while
    `single_transformer_blocks.7.proj_out` is in `single.7`.

    Raises:
        ValueError: no FLUX transformer has a Linear layer of that name.
    """
    if _BASE_MODULE.fullmatch(module):
        return BASE
    match = _BLOCK_MODULE.fullmatch(module)
    if match is None or match[3] not in _layer_names(match[1] is not None):
        raise ValueError(f"no FLUX transformer has a Linear layer called {module!r}")
    return BlockId("single" if match[1] else "double", int(match[2]))


def lora_modules(architecture: Architecture, targets: Targets) -> tuple[str, ...]:
    """Return the names of the Linear layers in the blocks that `targets` asks for, in model order.

    `all` is every Linear layer of every block, modulation included, as in ai-toolkit's FLUX recipe:
    14 per double and 6 per single block, 494 on FLUX.1. `base` layers are never among them. `kohya`
    is the same layers, see `shared_down`.
    """
    groups = _GROUPS[targets]
    doubles = [layer for group in groups for layer in _DOUBLE[group]]
    singles = [layer for group in groups for layer in _SINGLE[group]]
    names = [
        f"transformer_blocks.{index}.{layer}"
        for index in range(architecture.double_blocks)
        for layer in doubles
    ]
    names += [
        f"single_transformer_blocks.{index}.{layer}"
        for index in range(architecture.single_blocks)
        for layer in singles
    ]
    return tuple(names)


def shared_down(modules: Sequence[str]) -> dict[str, str]:
    """Return, for each module, the one whose matrix A it has under the targets `kohya`.

    kohya-ss/sd-scripts (networks/lora_flux.py, LoRANetwork with train_blocks all) puts one LoRA on
    every Linear layer of the blocks as Black Forest Labs' own code holds them: query, key and
    value are one layer there, and in a single block the MLP's first one as well. One A for their
    common input and B's rows cut up among them is that very LoRA: 304 A on FLUX.1 for 494 layers.

    Args:
        modules: Linear layers of blocks; one outside a group, or first in its own, has its own A.
    """
    first = {layer: layers[0] for layers in (*_FUSED_DOUBLE, *_FUSED_SINGLE) for layer in layers}
    leaders = {}
    for module in modules:
        match = _BLOCK_MODULE.fullmatch(module)
        layer = match[3] if match else ""
        leaders[module] = module.removesuffix(layer) + first.get(layer, layer)
    return leaders


def _layer_names(single: bool) -> frozenset[str]:
    layers = _SINGLE if single else _DOUBLE
    return frozenset(layer for group in layers.values() for layer in group)
