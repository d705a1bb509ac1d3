"""PEFT's LoRA layers with fewer operations and the same numbers.

On a model as small as nano-flux a step's time goes into the number of operations, and 494 LoRA
layers are most of them. PEFT's forward (peft, src/peft/tuners/lora/layer.py, Linear.forward)
serves many variants of LoRA; plain LoRA on one adapter is y = W x + b + scale * B (A x), which is
two matrix products and one fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn import functional

from stages.adapters.attach import ADAPTER_NAME, lora_layers


def shorten_lora_forward(transformer: FluxTransformer2DModel) -> None:
    """Give every LoRA layer of `transformer` the short forward, for as long as it carries them.

    Hooks on a layer's matrices are not called any more, so this is for training alone.
    """
    for layer in lora_layers(transformer).values():
        layer.forward = _short_forward(
            layer.get_base_layer(),
            layer.lora_A[ADAPTER_NAME].weight,
            layer.lora_B[ADAPTER_NAME].weight,
            layer.scaling[ADAPTER_NAME],
        )


def _short_forward(
    base: nn.Module, down: nn.Parameter, up: nn.Parameter, scale: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward of one layer: A, B, their product's input and the sum in float32."""

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = base(hidden)
        narrow = functional.linear(hidden.to(down.dtype), down)
        wide = output.to(up.dtype).flatten(0, -2)
        total = torch.addmm(wide, narrow.flatten(0, -2), up.t(), alpha=scale)
        return total.view(output.shape).to(output.dtype)

    return forward
