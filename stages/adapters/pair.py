"""The two small matrices of one Linear layer's LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["LoRA", "LoHa", "LoKr", "DoRA"]

_MATRIX_AXES = 2


@dataclass(frozen=True, eq=False)
class Origin:
    """A layer as its file has it, for what is no plain LoRA and is written back unchanged.

    One object per layer in the file, which may be several of ours; `tensors` have the names and
    number formats of the file.
    """

    name: str
    kind: Kind
    tensors: Mapping[str, torch.Tensor]

    @property
    def parameters(self) -> int:
        """Numbers in all its tensors together."""
        return sum(tensor.numel() for tensor in self.tensors.values())


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The adapter of one Linear layer: down A [rank, in] and up B [out, rank], float32 on the CPU.

    `origin` is None for a plain LoRA; LoHa's change is a pair as well, but written as it came.

    Raises:
        ValueError: A and B are not two matrices of one rank of at least 1.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    origin: Origin | None = None

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
    def shape(self) -> tuple[int, int]:
        """Shape of Delta W: (out, in)."""
        return (self.up.shape[0], self.down.shape[1])

    @property
    def parameters(self) -> int:
        """Numbers in A and B together."""
        return self.down.numel() + self.up.numel()

    def delta(self) -> torch.Tensor:
        """Return Delta W [out, in], float32. As large as the layer's own weight."""
        return self.scale * (self.up @ self.down)


def hadamard_factors(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A [r s, in] and B [out, r s] of (B1 A1) * (B2 A2), the elementwise product.

    Exact: an elementwise product of two sums of outer products is the sum over all pairs of them
    (LoHa, arXiv 2108.06098, proposition 1).

    Args:
        one: B1 [out, r] and A1 [r, in].
        other: B2 [out, s] and A2 [s, in].
    """
    (up, down), (other_up, other_down) = one, other
    wide = (up[:, :, None] * other_up[:, None, :]).flatten(1)
    return (down[:, None, :] * other_down[None, :, :]).flatten(0, 1), wide
