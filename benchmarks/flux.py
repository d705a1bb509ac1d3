"""FLUX.1-dev's shape, for models with random weights or with none at all.

Numbers are those of black-forest-labs/FLUX.1-dev: transformer/config.json and
vae/config.json.
"""

from __future__ import annotations

from typing import Any, Final

TRANSFORMER: Final[dict[str, Any]] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
SHAPES: Final[dict[str | None, dict[str, Any]]] = {
    "black-forest-labs/FLUX.1-schnell": {**TRANSFORMER, "guidance_embeds": False},
    "ostris/Flex.1-alpha": {**TRANSFORMER, "num_layers": 8},
}
"""Repositories (fetch.repository) whose transformer has another shape than FLUX.1-dev's."""
VAE: Final[dict[str, Any]] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
