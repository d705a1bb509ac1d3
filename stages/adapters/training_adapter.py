"""A frozen LoRA that the base model carries while it is trained, and not while it is sampled.

FLUX.1-schnell is distilled to four steps, and training on it undoes that. A training adapter (such
as ostris/FLUX.1-schnell-training-adapter) undoes it beforehand, so that the LoRA need not; without
the adapter, LoRA and base draw in four steps again.

ai-toolkit adds it to the weights before training and subtracts it for pictures (ostris/ai-toolkit,
toolkit/stable_diffusion_model.py), which in 16 bits does not give the same weights back. Here it is
a path beside each base layer, y + scale B A x in float32: the base's tensors are never touched,
quantised or not, and off means exactly the base. At rank 16 it costs 344 MB on FLUX.1 and about
the time that the trained LoRA takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn import functional

from stages.adapters.compatibility import linear_shapes, require_fit
from stages.adapters.module import Adapter, LoraPair

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


class TrainingAdapter:
    """A training adapter on a model; on until `off`."""

    def __init__(self, transformer: FluxTransformer2DModel, adapter: Adapter) -> None:
        """Put `adapter` on the base layers of `transformer`, which carries no LoRA yet.

        One that is put on later is trained beside it and does not hold it.

        Raises:
            AdapterError: the adapter has modules that the model lacks, or other shapes.
        """
        require_fit(adapter, linear_shapes(transformer))
        self._on = True
        for module, pair in adapter.modules.items():
            hook = self._hook(pair, transformer.device)
            transformer.get_submodule(module).register_forward_hook(hook)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let the model be without the adapter for as long as the context lasts."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def _hook(self, pair: LoraPair, device: torch.device) -> Hook:
        down = pair.down.to(device, torch.float32)
        up = (pair.up * pair.scale).to(device, torch.float32)

        def add(
            _layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            if not self._on:
                return output
            change = functional.linear(functional.linear(inputs[0].float(), down), up)
            return (output.float() + change).to(output.dtype)

        return add
