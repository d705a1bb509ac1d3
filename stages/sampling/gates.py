"""A gate for each block of an adapter: 0 is the base model, 1 the adapter, per picture.

The gate scales the block's Delta W by scaling what PEFT's `lora_B` layers give. PEFT then adds
that to the base layer's output (peft, src/peft/tuners/lora/layer.py, Linear.forward), so gate 0
adds zero and gate 1 changes nothing: both are exact, bit for bit. Gradients flow to the gates.

A block's gate can be taken apart by what it acts on: its work on the tokens of the picture, on
those of the prompt, and on both at once (the modulation of a single block). A double block has
layers for either; a single block's layers see the prompt's tokens first, then the picture's.

Where it is asked for, a block of which all pictures want the same is merged into the base weights
(merged_weights.py): about half the time of a picture with all blocks on, equal to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from peft.tuners.lora import LoraLayer

from stages.adapters.attach import ADAPTER_NAME, lora_layers
from stages.contracts.blocks import BlockId
from stages.families.architecture import block_of
from stages.families.streams import STREAMS, stream_of
from stages.sampling.merged_weights import MergedWeights, can_merge


@dataclass
class _Gate:
    """One block's layers and its gate in the next forward pass.

    `value` is [B], [B, streams] for a gate per stream, or None for all ones. `weights` is None
    where nothing is merged.
    """

    layers: tuple[LoraLayer, ...]
    weights: MergedWeights | None
    value: torch.Tensor | None = None
    text_tokens: int = 0

    def scaler(self, module: str) -> Callable[[object, object, torch.Tensor], torch.Tensor]:
        """Return the hook of that module's `lora_B`: `output` [B, …] times the gate."""
        stream = stream_of(module)

        def scale(_layer: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            if self.value is None:
                return output
            shape = (-1,) + (1,) * (output.ndim - 1)  # modulation is [B, D], tokens are [B, N, D]
            value = self.value.to(output.dtype)
            if value.ndim == 1:
                return output * value.view(shape)
            if stream is not None:
                return output * value[:, STREAMS.index(stream)].view(shape)
            return output * self._per_token(value, output.shape[1])

        return scale

    def _per_token(self, value: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return the gates [B, tokens, 1] of a single block's tokens, the prompt's first."""
        text = value[:, STREAMS.index("text"), None].expand(-1, self.text_tokens)
        picture = value[:, STREAMS.index("picture"), None]
        return torch.cat([text, picture.expand(-1, tokens - self.text_tokens)], dim=1)[..., None]

    def use(self, value: torch.Tensor, same: float | None, text_tokens: int) -> None:
        """Use `value` from the next forward pass on; `same` is its only number, or None."""
        merged = self.weights is not None and same is not None
        if self.weights is not None:
            self.weights.merge(same if same is not None else 0.0)
        self._switch(on=not merged and same != 0.0)
        self.value = None if same == 1.0 else value
        self.text_tokens = text_tokens

    def open(self) -> None:
        """Let the layers be as they were attached, with the whole LoRA on."""
        if self.weights is not None:
            self.weights.merge(0.0)
        self._switch(on=True)

    def _switch(self, on: bool) -> None:
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

    def set(self, gates: torch.Tensor, text_tokens: int = 0) -> None:
        """Use `gates`, on the transformer's device, from the next forward pass on.

        A block that no picture of the batch uses is skipped, and one that all use fully is not
        multiplied: the numbers are the same, in less time. Gates that require a gradient are
        always computed.

        Args:
            gates: [B, blocks], or [B, blocks, streams] in the order of STREAMS.
            text_tokens: how many tokens the prompts have; for gates per stream alone.

        Raises:
            ValueError: there is not one column per block, or not one gate per stream.
        """
        streams = (len(STREAMS),) if gates.ndim > 2 else ()
        if gates.shape[1:] != (len(self.blocks), *streams):
            raise ValueError(
                f"expected gates [B, {len(self.blocks)}], or with {len(STREAMS)} streams each,"
                f" got {list(gates.shape)}"
            )
        differentiable = gates.requires_grad
        values = (
            gates.detach().reshape(len(gates), len(self.blocks), -1).transpose(1, 2).flatten(0, 1)
        )
        least, most = values.amin(dim=0).tolist(), values.amax(dim=0).tolist()
        for column, gate in enumerate(self._gates):
            alike = not differentiable and least[column] == most[column]
            gate.use(gates[:, column], least[column] if alike else None, text_tokens)


@contextmanager
def block_gates(
    transformer: FluxTransformer2DModel, blocks: Sequence[BlockId], *, merge: bool = False
) -> Iterator[BlockGates]:
    """Yield the gates of an attached, frozen adapter; all are 1 until they are set.

    On leaving, the transformer is as it was, with the whole adapter on.

    Args:
        transformer: with an adapter from `adapters.attach.attach_adapter`.
        blocks: the adapter's blocks: the order of the gates' columns.
        merge: add a block to the base weights where it can be and all pictures want the same of it.

    Raises:
        ValueError: `blocks` are not the blocks that the attached adapter has.
    """
    found = lora_layers(transformer)
    if {block_of(module) for module in found} != set(blocks):
        raise ValueError("the gates' blocks are not those of the attached adapter")
    layers = {block: [found[name] for name in found if block_of(name) == block] for block in blocks}
    gates = tuple(
        _Gate(tuple(own), MergedWeights(own) if merge and all(map(can_merge, own)) else None)
        for own in layers.values()
    )
    of_block = dict(zip(blocks, gates, strict=True))
    hooks = [
        layer.lora_B[ADAPTER_NAME].register_forward_hook(of_block[block_of(module)].scaler(module))
        for module, layer in found.items()
    ]
    try:
        yield BlockGates(tuple(blocks), gates)
    finally:
        for hook in hooks:
            hook.remove()
        for gate in gates:
            gate.open()
