"""How large an adapter's change of the weights is, without ever forming the change.

|s B A|_F^2 = s^2 trace(A^T B^T B A) = s^2 trace((B^T B)(A A^T)): two rank x rank matrices instead
of one as large as the layer. All sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.adapters.module import Adapter, LoraPair
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


def delta_norm(pair: LoraPair) -> float:
    """Return |Delta W|_F = |(alpha / rank) B A|_F, 0 or larger."""
    down, up = pair.down.double(), pair.up.double()
    squared = ((up.T @ up) * (down @ down.T)).sum().item()
    return abs(pair.scale) * math.sqrt(max(squared, 0.0))


def relative_norm(pair: LoraPair, weight: torch.Tensor) -> float:
    """Return |Delta W|_F / |W|_F for the layer's weight W [out, in].

    Raises:
        WeightsError: W is zero.
    """
    return _checked(BlockNorm(delta_norm(pair), _weight_norm(weight)), "a layer").relative


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
        delta = math.hypot(*(delta_norm(pair) for pair in part.modules.values()))
        weight = math.hypot(*(_weight_norm(read_weight(module)) for module in part.modules))
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
