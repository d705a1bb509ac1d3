"""How large an adapter's change of the weights is, without ever forming the change.

|s B A|_F^2 = s^2 trace(A^T B^T B A) = s^2 trace((B^T B)(A A^T)): two rank x rank matrices instead
of one as large as the layer. All sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.adapters.dora import DoraPair
from stages.adapters.kronecker import KroneckerPair
from stages.adapters.module import Adapter, Change
from stages.adapters.pair import LoraPair
from stages.adapters.partition import split_by_block
from stages.contracts.blocks import BlockId
from stages.contracts.errors import Problem, WeightsError

_ROWS_AT_ONCE = 1024  # keeps the float64 copy of a weight small


@dataclass(frozen=True)
class BlockNorm:
    """|Delta W|_F and |W|_F over the modules of a block that the adapter touches."""

    delta: float
    weight: float

    @property
    def relative(self) -> float:
        """|Delta W|_F / |W|_F."""
        return self.delta / self.weight


def delta_norm(change: LoraPair | KroneckerPair) -> float:
    """Return |Delta W|_F = |(alpha / rank) B A|_F, 0 or larger."""
    if isinstance(change, KroneckerPair):
        return change.norm()
    down, up = change.down.double(), change.up.double()
    squared = ((up.T @ up) * (down @ down.T)).sum().item()
    return abs(change.scale) * math.sqrt(max(squared, 0.0))


def relative_norm(change: Change, weight: torch.Tensor) -> float:
    """Return |Delta W|_F / |W|_F for the layer's weight W [out, in].

    Raises:
        WeightsError: W is zero.
    """
    return _checked(BlockNorm(*_layer_norms(change, weight)), "a layer").relative


def _layer_norms(change: Change, weight: torch.Tensor) -> tuple[float, float]:
    """Return |Delta W|_F and |W|_F of one layer; DoRA's change is formed, it has the rank of W."""
    if isinstance(change, DoraPair):
        return _weight_norm(change.delta(weight)), _weight_norm(weight)
    return delta_norm(change), _weight_norm(weight)


def block_norms(
    adapter: Adapter, read_weight: Callable[[str], torch.Tensor]
) -> dict[BlockId, BlockNorm]:
    """Return the norms of every block present, in model order.

    A block counts as one long vector: the square root of the sum of its modules' squares.

    Args:
        adapter: the LoRA.
        read_weight: from a module's name to its base weight [out, in]; called once per module.

    Raises:
        WeightsError: all weights of a block are zero.
    """
    norms = {}
    for block, part in split_by_block(adapter).items():
        found = [
            _layer_norms(change, read_weight(module)) for module, change in part.modules.items()
        ]
        delta, weight = (math.hypot(*each) for each in zip(*found, strict=True))
        norms[block] = _checked(BlockNorm(delta, weight), str(block))
    return norms


def _weight_norm(weight: torch.Tensor) -> float:
    rows = (torch.linalg.vector_norm(part.double()) for part in torch.split(weight, _ROWS_AT_ONCE))
    return math.hypot(*(norm.item() for norm in rows))


def _checked(norm: BlockNorm, name: str) -> BlockNorm:
    if norm.weight == 0.0:
        problem = Problem(name, "all its base weights are zero", "Fetch the base model again.")
        raise WeightsError("The base model has no weights to compare with", [problem])
    return norm
