"""The parts of a base model, each loaded alone, frozen and in evaluation mode.

Every stage that runs the transformer gets it from here, quantised or offloaded as `model` says:
training, sample pictures and the lens look at the very same weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch.utils.checkpoint import checkpoint

from stages.contracts.params import ModelParams
from stages.families.quantisation import quantisation_config, require_hardware, restore_projection
from stages.runtime.device import DTYPES


def load_transformer(
    folder: Path, model: ModelParams, device: torch.device
) -> FluxTransformer2DModel:
    """Return the transformer as `model` says, for `device`.

    With quantisation the Linear layers of the blocks are quantised while they are read; embedders,
    norm_out and proj_out stay as they are. With offload the weights stay in main memory, and every
    layer fetches its own for the time that it computes.

    Raises:
        HardwareError: a package or the GPU that `model` needs is missing.
    """
    require_hardware(model, device)
    transformer = FluxTransformer2DModel.from_pretrained(
        folder / "transformer", dtype=DTYPES[model.precision], **_placement(model, device)
    )
    if model.quantisation == "nf4":
        restore_projection(transformer, folder)
    if model.offload == "group":
        # By leaf: the adapter's matrices, which come later, are in no group and stay on the GPU.
        transformer.enable_group_offload(device, offload_type="leaf_level")
    elif model.quantisation != "nf4":  # bitsandbytes has put it on the GPU already
        transformer.to(device)
    return transformer.eval().requires_grad_(False)


def checkpoint_blocks(transformer: FluxTransformer2DModel) -> None:
    """Keep each block's inputs alone for the backward pass, which computes the rest again.

    Every block is computed again to its end: torch would stop at the last tensor that it needs,
    and then no hook after a layer would take an offloaded weight off the GPU again.
    """

    def run(block: torch.nn.Module, *inputs: Any) -> Any:
        return checkpoint(block.__call__, *inputs, use_reentrant=False, early_stop=False)

    transformer.enable_gradient_checkpointing(run)


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


def _placement(model: ModelParams, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantise, on the GPU where there is one.

    On a CPU there is no map: diffusers takes a map to the CPU for offloading, and quantises nothing
    that is offloaded (diffusers, quantizers/torchao/torchao_quantizer.py).
    """
    if model.quantisation == "none":
        return {}
    placement: dict[str, Any] = {"quantization_config": quantisation_config(model.quantisation)}
    if device.type == "cuda":
        placement["device_map"] = {"": device}
    return placement
