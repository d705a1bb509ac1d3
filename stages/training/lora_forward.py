"""PEFT's LoRA layers with fewer operations and the same numbers, and with rank dropout.

On a model as small as nano-flux a step's time goes into the number of operations, and 494 LoRA
layers are most of them. PEFT's forward (peft, src/peft/tuners/lora/layer.py, Linear.forward)
serves many variants of LoRA; plain LoRA on one adapter is y = W x + b + scale * B (A x), which is
two matrix products and one fused multiply-add.

Adapter dropout is kohya's rank dropout (sd-scripts, networks/lora_flux.py, LoRAModule.forward,
`rank_dropout`): for each sample some rows of A x are zero in all its tokens, and the others are
scaled up by as much. Unlike a mask over PEFT's inputs, one over ranks is small enough to be drawn
on the CPU from a key of the sample, whatever the batch.

Modules that have one A together (kohya's targets) have one draw together, as the one layer has that
they are to sd-scripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn import functional

from stages.adapters.attach import ADAPTER_NAME, lora_layers
from stages.families.noise import keyed_uniform


def shorten_lora_forward(transformer: FluxTransformer2DModel) -> None:
    """Give every LoRA layer of `transformer` the short forward, for as long as it carries them.

    Hooks on a layer's matrices are not called any more, so this is for training alone.
    """
    for layer in lora_layers(transformer).values():
        layer.forward = _ShortForward(
            layer.get_base_layer(),
            layer.lora_A[ADAPTER_NAME].weight,
            layer.lora_B[ADAPTER_NAME].weight,
            layer.scaling[ADAPTER_NAME],
        )


def total_rank(transformer: FluxTransformer2DModel) -> int:
    """Return the sum of the ranks of all A that the transformer carries, a shared one once."""
    return sum(down.shape[0] for down in _downs(transformer))


def rank_factors(ranks: int, share: float, *key: int | str) -> torch.Tensor:
    """Return [ranks] float32 factors: 0 with probability `share`, else 1 / (1 - share).

    Args:
        ranks: of all A together, in model order.
        share: in [0, 1).
        *key: of the draw, see `keyed_generator`.
    """
    return (keyed_uniform([ranks], *key) >= share).float() / (1 - share)


@contextmanager
def rank_dropout(transformer: FluxTransformer2DModel, factors: torch.Tensor) -> Iterator[None]:
    """Multiply A x by `factors` as long as the context lasts, which must include the backward pass.

    Args:
        transformer: with the short forward on its LoRA layers.
        factors: [B, ranks of all A together], of each sample of the batch.

    Raises:
        RuntimeError: a layer has PEFT's own forward, which would drop nothing.
    """
    forwards = [vars(layer).get("forward") for layer in lora_layers(transformer).values()]
    short = [forward for forward in forwards if isinstance(forward, _ShortForward)]
    if len(short) < len(forwards):
        raise RuntimeError("adapter dropout needs shorten_lora_forward on the transformer")
    downs = _downs(transformer)
    parts = torch.split(factors, [down.shape[0] for down in downs], dim=1)
    of_down = dict(zip(downs, parts, strict=True))
    for forward in short:
        forward.factors = of_down[forward.down].to(forward.down.device)
    try:
        yield
    finally:
        for forward in short:
            forward.factors = None


def _downs(transformer: FluxTransformer2DModel) -> list[nn.Parameter]:
    """Return every A in model order, one that several modules have at the first of them."""
    layers = lora_layers(transformer).values()
    return list(dict.fromkeys(layer.lora_A[ADAPTER_NAME].weight for layer in layers))


class _ShortForward:
    """The forward of one layer: A, B, their product's input and the sum in float32."""

    def __init__(self, base: nn.Module, down: nn.Parameter, up: nn.Parameter, scale: float) -> None:
        self.factors: torch.Tensor | None = None
        self.down = down
        self._base = base
        self._up = up
        self._scale = scale

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._base(hidden)
        narrow = functional.linear(hidden.to(self.down.dtype), self.down)
        if self.factors is not None:
            # hidden is [B, C] in the modulations and [B, N, C] elsewhere.
            narrow = narrow * self.factors.view(-1, *[1] * (narrow.dim() - 2), self.rank)
        wide = output.to(self._up.dtype).flatten(0, -2)
        total = torch.addmm(wide, narrow.flatten(0, -2), self._up.t(), alpha=self._scale)
        return total.view(output.shape).to(output.dtype)
