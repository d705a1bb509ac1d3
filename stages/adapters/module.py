"""What a LoRA is in memory: the change of each Linear layer, and what came with the file.

Delta W = (alpha / rank) B A (LoRA, arXiv 2106.09685, section 4.1). A is `down`, B is `up`, as in
PEFT (peft, src/peft/tuners/lora/layer.py). LoHa's Delta W is such a pair, too; LoKr and DoRA have
types of their own (kronecker.py, dora.py). A block's gate scales the whole Delta W of its layers,
whatever it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from stages.adapters.dora import DoraPair
from stages.adapters.kronecker import KroneckerPair
from stages.adapters.pair import LoraPair, Origin
from stages.contracts.blocks import BlockId
from stages.families.architecture import block_of

Change: TypeAlias = LoraPair | KroneckerPair | DoraPair
"""How one Linear layer's weight is changed."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA: one change per Linear layer, and what else came with the file.

    `modules` is keyed by diffusers' module name without `transformer.`, such as
    `transformer_blocks.7.attn.to_q`. A module that is not a key is *not present*, which is not the
    same as a pair whose effect is zero. `metadata` says nothing about scale: alpha is in the pairs.
    `apart` holds the file's tensors for text encoders, under their own names.
    """

    modules: Mapping[str, Change]
    metadata: Mapping[str, str]
    apart: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """The blocks that have at least one module here, in the order the model runs them."""
        return tuple(sorted({block_of(module) for module in self.modules}))

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 without modules."""
        return max((change.rank for change in self.modules.values()), default=0)

    @property
    def parameters(self) -> int:
        """Numbers in all matrices together, as we write them."""
        plain = sum(change.parameters for change in self.modules.values() if not change.origin)
        return plain + sum(origin.parameters for origin in origins(self))

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all matrices in a file of ours, which is float32."""
        return 4 * self.parameters


def origins(adapter: Adapter) -> tuple[Origin, ...]:
    """Return the layers that are written as they came, each once, in order of their names."""
    found = {id(change.origin): change.origin for change in adapter.modules.values()}
    return tuple(sorted((each for each in found.values() if each), key=lambda each: each.name))


def plain_pairs(adapter: Adapter) -> dict[str, LoraPair]:
    """Return the modules that are a plain LoRA: two matrices and a scale."""
    return {
        module: change
        for module, change in adapter.modules.items()
        if isinstance(change, LoraPair) and change.origin is None
    }
