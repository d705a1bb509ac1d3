"""Gates for compiled blocks: another variant is another number in a tensor, not another program.

`gates.py` skips blocks that no picture uses, which a compiler would see as new code for every
variant. Here every block's LoRA is computed and multiplied by a gate per picture that stands in one
place of memory. All blocks of a kind look the same to the compiler, so it compiles one of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from stages.adapters.attach import ADAPTER_NAME, lora_layers
from stages.contracts.blocks import BlockId
from stages.families.architecture import block_of
from stages.sampling.gates import BlockGates


class _GatedUp(nn.Module):
    """B of one LoRA layer, its output times the gate [B] of the layer's block."""

    gate: torch.Tensor

    def __init__(self, up: nn.Module, gate: torch.Tensor) -> None:
        super().__init__()
        self.up = up
        self.register_buffer("gate", gate, persistent=False)

    def forward(self, narrow: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.up(narrow)
        return output * self.gate.view(-1, *[1] * (output.ndim - 1))


class _FixedGates:
    """The gates of all blocks, in tensors that stay where they are."""

    def __init__(self, blocks: Sequence[BlockId], gates: Sequence[torch.Tensor]) -> None:
        self.blocks = tuple(blocks)
        self._gates = tuple(gates)

    def set(self, gates: torch.Tensor) -> None:
        """Use `gates` [B, blocks] from the next forward pass on.

        Raises:
            ValueError: there is not one column per block and one row per picture.
        """
        if list(gates.shape) != [len(self._gates[0]), len(self.blocks)]:
            wanted = [len(self._gates[0]), len(self.blocks)]
            raise ValueError(f"expected gates {wanted}, got {list(gates.shape)}")
        for column, gate in enumerate(self._gates):
            gate.copy_(gates[:, column])


@contextmanager
def compiled_gates(
    transformer: FluxTransformer2DModel,
    blocks: Sequence[BlockId],
    batch: int,
    backend: str = "inductor",
) -> Iterator[BlockGates]:
    """Yield the gates of an attached, frozen adapter whose blocks are compiled; all are 1.

    Args:
        transformer: with an adapter from `adapters.attach.attach_adapter`.
        blocks: the adapter's blocks: the order of the gates' columns.
        batch: pictures in every forward pass.
        backend: of torch.compile.

    Raises:
        ValueError: `blocks` are not the blocks that the attached adapter has.
    """
    layers = lora_layers(transformer)
    if {block_of(module) for module in layers} != set(blocks):
        raise ValueError("the gates' blocks are not those of the attached adapter")
    gates = {block: torch.ones(batch, device=transformer.device) for block in blocks}
    bare = {module: layer.lora_B[ADAPTER_NAME] for module, layer in layers.items()}
    for module, layer in layers.items():
        layer.lora_B[ADAPTER_NAME] = _GatedUp(bare[module], gates[block_of(module)])
    transformer.compile_repeated_blocks(backend=backend, dynamic=False)
    try:
        # Generator knows the other kind of gates by `blocks` and `set`, which these have too.
        yield cast(BlockGates, _FixedGates(blocks, list(gates.values())))
    finally:
        for module, layer in layers.items():
            layer.lora_B[ADAPTER_NAME] = bare[module]
        for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            part._compiled_call_impl = None  # what nn.Module.compile sets
