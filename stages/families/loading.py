"""The parts of a base model, each loaded alone, frozen and in evaluation mode."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from stages.runtime.device import DTYPES


def load_transformer(folder: Path, precision: str, device: torch.device) -> FluxTransformer2DModel:
    """Return the transformer in `precision` (float32 or bfloat16) on `device`."""
    transformer = FluxTransformer2DModel.from_pretrained(
        folder / "transformer", dtype=DTYPES[precision]
    )
    return transformer.to(device).eval().requires_grad_(False)


def load_vae(folder: Path, device: torch.device) -> AutoencoderKL:
    """Return the autoencoder in float32: FLUX's loses detail in 16 bits."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    return vae.to(device).eval().requires_grad_(False)


def load_text_encoders(folder: Path, precision: str, device: torch.device) -> FluxPipeline:
    """Return a pipeline that holds only the two text encoders and their tokenizers."""
    pipeline = FluxPipeline.from_pretrained(
        folder, transformer=None, vae=None, dtype=DTYPES[precision]
    )
    return pipeline.to(device)
