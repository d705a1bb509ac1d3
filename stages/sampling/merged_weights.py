"""A block's Delta W in its base weights, while every picture of a batch wants the same of it.

A forward pass then costs what the base model's does. The weights are rounded once more than in
PEFT's layer, which adds two products: pictures agree to float32 rounding, not bit for bit. The base
weights are put aside and come back as the same tensors, so nothing adds up over many batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from stages.adapters.attach import ADAPTER_NAME


class MergedWeights:
    """The base weights of one block's layers, with any strength of its LoRA in them."""

    def __init__(self, layers: Sequence[LoraLayer]) -> None:
        """Put the base weights aside; nothing is merged yet.

        Args:
            layers: all of which `can_merge`.
        """
        self._layers = tuple(layers)
        self._base = tuple(layer.get_base_layer().weight.data for layer in layers)
        self._strength = 0.0

    @torch.no_grad()
    def merge(self, strength: float) -> None:
        """Let the weights be W + strength * Delta W; with strength 0 they are the base's own."""
        if strength == self._strength:
            return
        for layer, base in zip(self._layers, self._base, strict=True):
            weight = layer.get_base_layer().weight
            if strength == 0.0:
                weight.data = base
                continue
            down, up = (each[ADAPTER_NAME].weight for each in (layer.lora_A, layer.lora_B))
            scale = strength * layer.scaling[ADAPTER_NAME]
            weight.data = torch.addmm(base, up, down, alpha=scale)
        self._strength = strength


def can_merge(layer: LoraLayer) -> bool:
    """Return whether the layer's Delta W can be added to its weight at no cost in precision.

    Not in bfloat16, where small changes of a weight are lost; nor quantised; nor for DoRA and
    LoKr, which are no product of two matrices; nor on a GPU, whose weights may wait elsewhere.
    """
    weight = layer.get_base_layer().weight.data
    return (
        type(weight) is torch.Tensor
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and all(type(each[ADAPTER_NAME]) is nn.Linear for each in (layer.lora_A, layer.lora_B))
    )
