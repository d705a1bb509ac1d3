"""A gate for each block of an adapter: 0 is the base model, 1 the adapter, per picture.

The gate scales the block's Delta W by scaling what PEFT's `lora_B` layers give. PEFT then adds
that to the base layer's output (peft, src/peft/tuners/lora/layer.py, Linear.forward), so gate 0
adds zero and gate 1 changes nothing: both are exact, bit for bit. Gradients flow to the gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from peft.tuners.lora import LoraLayer

from stages.adapters.attach import ADAPTER_NAME, lora_layers
from stages.contracts.blocks import BlockId
from stages.families.architecture import block_of


@dataclass
class _Gate:
    """One block's layers and its gate in the next forward pass: [B], or None for all ones."""

    layers: tuple[LoraLayer, ...]
    value: torch.Tensor | None = None

    def scale(self, _layer: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        """Return `output` [B, …] times the gate; a hook of `lora_B`."""
        if self.value is None:
            return output
        shape = (-1,) + (1,) * (output.ndim - 1)  # modulation is [B, D], tokens are [B, N, D]
        return output * self.value.to(output.dtype).view(shape)

    def switch(self, on: bool) -> None:
        """Let the layers compute their LoRA part, or skip it."""
        for layer in self.layers:
            if layer.disable_adapters is on:
                layer.enable_adapters(on)
                layer.requires_grad_(False)  # PEFT makes an enabled adapter trainable


@dataclass(frozen=True)
class BlockGates:
    """The gates of a transformer's blocks, while `block_gates` is open."""

    blocks: tuple[BlockId, ...]
    _gates: tuple[_Gate, ...]

    def set(self, gates: torch.Tensor) -> None:
        """Use `gates` [B, blocks], on the transformer's device, from the next forward pass on.

        A block that no picture of the batch uses is skipped, and one that all use fully is not
        multiplied: the numbers are the same, in less time. Gates that require a gradient are
        always computed.

        Raises:
            ValueError: there is not one column per block.
        """
        if gates.ndim != 2 or gates.shape[1] != len(self.blocks):
            raise ValueError(f"expected gates [B, {len(self.blocks)}], got {list(gates.shape)}")
        differentiable = gates.requires_grad
        values = gates.detach()
        used = values.ne(0).any(dim=0).tolist()
        partial = values.ne(1).any(dim=0).tolist()
        for column, gate in enumerate(self._gates):
            gate.switch(differentiable or used[column])
            gate.value = gates[:, column] if differentiable or partial[column] else None


@contextmanager
def block_gates(
    transformer: FluxTransformer2DModel, blocks: Sequence[BlockId]
) -> Iterator[BlockGates]:
    """Yield the gates of an attached, frozen adapter; all are 1 until they are set.

    On leaving, the transformer is as it was, with the whole adapter on.

    Args:
        transformer: with an adapter from `adapters.attach.attach_adapter`.
        blocks: the adapter's blocks: the order of the gates' columns.

    Raises:
        ValueError: `blocks` are not the blocks that the attached adapter has.
    """
    layers: dict[BlockId, list[LoraLayer]] = {block: [] for block in blocks}
    found = lora_layers(transformer)
    if {block_of(module) for module in found} != set(blocks):
        raise ValueError("the gates' blocks are not those of the attached adapter")
    for module, layer in found.items():
        layers[block_of(module)].append(layer)
    gates = tuple(_Gate(tuple(layers[block])) for block in blocks)
    hooks = [
        layer.lora_B[ADAPTER_NAME].register_forward_hook(gate.scale)
        for gate in gates
        for layer in gate.layers
    ]
    try:
        yield BlockGates(tuple(blocks), gates)
    finally:
        for hook in hooks:
            hook.remove()
        for gate in gates:
            gate.switch(on=True)
