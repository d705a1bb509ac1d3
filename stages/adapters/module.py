"""What a LoRA is in memory: per Linear layer two small matrices and a scale.

Delta W = (alpha / rank) B A (LoRA, arXiv 2106.09685, section 4.1). A is `down`, B is `up`, as in
PEFT (peft, src/peft/tuners/lora/layer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stages.contracts.blocks import BlockId
from stages.families.architecture import block_of

_MATRIX_AXES = 2


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The adapter of one Linear layer: down A [rank, in] and up B [out, rank], float32 on the CPU.

    Raises:
        ValueError: A and B are not two matrices of one rank of at least 1.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    def __post_init__(self) -> None:
        """Refuse matrices whose product does not exist."""
        matrices = self.down.ndim == self.up.ndim == _MATRIX_AXES
        if not matrices or self.up.shape[1] != self.rank or self.rank == 0:
            raise ValueError(
                f"not a LoRA pair: A {list(self.down.shape)}, B {list(self.up.shape)} "
                "(expected A [rank, in] and B [out, rank])"
            )

    @property
    def rank(self) -> int:
        """Rows of A, which are the columns of B."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor of B A in Delta W: alpha / rank."""
        return self.alpha / self.rank

    @property
    def parameters(self) -> int:
        """Numbers in A and B together."""
        return self.down.numel() + self.up.numel()

    def delta(self) -> torch.Tensor:
        """Return Delta W [out, in], float32. As large as the layer's own weight."""
        return self.scale * (self.up @ self.down)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA: one pair per Linear layer, and the text that came with the file.

    `modules` is keyed by diffusers' module name without `transformer.`, such as
    `transformer_blocks.7.attn.to_q`. A module that is not a key is *not present*, which is not the
    same as a pair whose effect is zero. `metadata` says nothing about scale: alpha is in the pairs.
    """

    modules: Mapping[str, LoraPair]
    metadata: Mapping[str, str]

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """The blocks that have at least one module here, in the order the model runs them."""
        return tuple(sorted({block_of(module) for module in self.modules}))

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 without modules."""
        return max((pair.rank for pair in self.modules.values()), default=0)

    @property
    def parameters(self) -> int:
        """Numbers in all matrices together."""
        return sum(pair.parameters for pair in self.modules.values())
