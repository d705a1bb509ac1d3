"""Base models by their configs alone, and params that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.contracts.params import FetchParams, Params
from tests.reporting.example import example_params

_SIZES = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
}


def write_configs(folder: Path, *, guided: bool, shifted: bool) -> Path:
    """Write the two configs that say how a base model is sampled; schnell's has neither."""
    for name, content in {
        "transformer/config.json": {**_SIZES, "guidance_embeds": guided},
        "scheduler/scheduler_config.json": {"use_dynamic_shifting": shifted, "shift": 1.0},
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def single_files(converted: Path) -> dict[str, str]:
    """Return `fetch.single_files` as people have schnell for ComfyUI."""
    return {
        "transformer": "/models/unet/flux1-schnell.safetensors",
        "autoencoder": "/models/vae/ae.safetensors",
        "text_encoder": "/models/clip/clip_l.safetensors",
        "text_encoder_2": "/models/clip/t5xxl_fp16.safetensors",
        "converted": str(converted),
    }


def params_of(folder: Path, **fetch: Any) -> Params:
    """Return the example's params with another base model."""
    params = example_params()
    changed = {**params.fetch.model_dump(), "folder": str(folder), **fetch}
    return params.model_copy(update={"fetch": FetchParams(**changed)})
