"""LoRA files as other programs write them, and the Delta W that each layer of ours must get.

The names are written out here once more, by hand, so that a slip in ours is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.loaders.lora_conversion_utils import swap_scale_shift

from stages.families.architecture import block_of
from stages.families.noise import keyed_normal
from tests.adapters.conftest import CASES

Shapes = Mapping[str, tuple[int, int]]

DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
BASE = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
XLABS_DOUBLE = {
    "processor.qkv_lora1": DOUBLE["img_attn.qkv"],
    "processor.qkv_lora2": DOUBLE["txt_attn.qkv"],
    "processor.proj_lora1": DOUBLE["img_attn.proj"],
    "processor.proj_lora2": DOUBLE["txt_attn.proj"],
}
XLABS_SINGLE = {
    "processor.qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "processor.proj_lora": ("proj_out",),
}


@dataclass(frozen=True)
class Format:
    """How a program writes: prefix, whose layers, `_` for `.`, ends of A's and B's names, alpha."""

    prefix: str
    layers: str
    flat: bool
    ends: tuple[str, str]
    alpha: bool


PEFT_ENDS = ("lora_A.weight", "lora_B.weight")
KOHYA_ENDS = ("lora_down.weight", "lora_up.weight")
FORMATS = {
    "diffusers, ai-toolkit": Format("transformer.", "ours", False, PEFT_ENDS, False),
    "diffusers with alpha": Format("transformer.", "ours", False, PEFT_ENDS, True),
    "diffusers without prefix": Format("", "ours", False, PEFT_ENDS, False),
    "PEFT": Format("base_model.model.", "ours", False, PEFT_ENDS, False),
    "PEFT with adapter name": Format(
        "base_model.model.",
        "ours",
        False,
        ("lora_A.default.weight", "lora_B.default.weight"),
        False,
    ),
    "PEFT, original names": Format("base_model.model.", "original", False, PEFT_ENDS, False),
    "kohya sd-scripts": Format("lora_unet_", "original", True, KOHYA_ENDS, True),
    "Black Forest Labs": Format("", "original", False, PEFT_ENDS, False),
    "ComfyUI": Format("diffusion_model.", "original", False, KOHYA_ENDS, True),
    "XLabs": Format("", "xlabs", False, ("down.weight", "up.weight"), False),
    "OneTrainer": Format("lora_transformer_", "ours", True, KOHYA_ENDS, True),
    "LyCORIS": Format("lycoris_", "ours", True, KOHYA_ENDS, True),
}


@dataclass(frozen=True)
class ForeignFile:
    """Tensors as a program writes them, modules of ours that they change, and Delta W of each."""

    tensors: dict[str, torch.Tensor]
    modules: frozenset[str]
    deltas: dict[str, torch.Tensor]


def layers_of(kind: str, shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Return, for each layer in a vocabulary, the modules of ours that it holds."""
    if kind == "ours":
        return {module: (module,) for module in shapes}
    tables = (DOUBLE, SINGLE, BASE) if kind == "original" else (XLABS_DOUBLE, XLABS_SINGLE, {})
    found = dict(tables[2])
    for stack, ours, table in (
        ("double_blocks", "transformer_blocks", tables[0]),
        ("single_blocks", "single_transformer_blocks", tables[1]),
    ):
        for index in range(60):
            for layer, parts in table.items():
                modules = tuple(f"{ours}.{index}.{part}" for part in parts)
                if modules[0] in shapes:
                    found[f"{stack}.{index}.{layer}"] = modules
    return found


def write_foreign(
    format_: Format, case: str, shapes: Shapes, rank: int = 2, dense: bool = True
) -> ForeignFile:
    """Return a file of one of the four cases with effect in every layer.

    `dense` forms Delta W: at FLUX.1's shape that would be 48 GB.
    """
    tensors: dict[str, torch.Tensor] = {}
    deltas: dict[str, torch.Tensor] = {}
    changed: set[str] = set()
    for number, (layer, modules) in enumerate(layers_of(format_.layers, shapes).items()):
        if not CASES[case](block_of(modules[0])):
            continue
        rows = [shapes[module][0] for module in modules]
        down = keyed_normal((rank, shapes[modules[0]][1]), "down", layer)
        up = keyed_normal((sum(rows), rank), "up", layer)
        alpha = (1.0, 3.0)[number % 2] if format_.alpha else float(rank)
        name = format_.prefix + (layer.replace(".", "_") if format_.flat else layer)
        tensors[f"{name}.{format_.ends[0]}"] = down
        tensors[f"{name}.{format_.ends[1]}"] = up
        if format_.alpha:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        changed |= set(modules)
        if not dense:
            continue
        whole = alpha / rank * (up @ down)
        if layer.startswith("final_layer.adaLN"):
            whole = swap_scale_shift(whole)
        deltas |= dict(zip(modules, whole.split(rows), strict=True))
    return ForeignFile(tensors, frozenset(changed), deltas)
