"""LoKr's change of a Linear layer: a Kronecker product, applied without ever being formed.

Delta W = scale (L ⊗ R), of which a layer of ours may have some rows (LoKr, arXiv 2212.10650;
KohakuBlueleaf/LyCORIS, lycoris/modules/lokr.py). With L [m, n] and R [p, q] it equals
(L ⊗ 1)(1 ⊗ R): first R on each of n pieces of the input, then L across the pieces. That is a pair
like LoRA's, so it stands in PEFT's layer in the places of A and B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from stages.adapters.pair import Origin

Span = tuple[int, int]
"""Rows [start, stop) of a layer in a file."""


@dataclass(frozen=True, eq=False)
class KroneckerPair:
    """Rows `spans` of scale (left ⊗ right); left [m, n], right [p, q], float32 on the CPU."""

    left: torch.Tensor
    right: torch.Tensor
    scale: float
    spans: tuple[Span, ...]
    origin: Origin

    @property
    def rank(self) -> int:
        """The largest rank that the product can have."""
        return min(self.left.shape) * min(self.right.shape)

    @property
    def alpha(self) -> float:
        """What makes alpha / rank the scale, as in a pair."""
        return self.scale * self.rank

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of Delta W: (out, in)."""
        rows = sum(stop - start for start, stop in self.spans)
        return (rows, self.left.shape[1] * self.right.shape[1])

    @property
    def parameters(self) -> int:
        """Numbers in both factors."""
        return self.left.numel() + self.right.numel()

    def delta(self) -> torch.Tensor:
        """Return Delta W [out, in], float32. As large as the layer's own weight."""
        return self.scale * take_rows(torch.kron(self.left, self.right), self.spans)

    def norm(self) -> float:
        """Return |Delta W|_F without forming it: a row's norm is a product of two."""
        left, right = ((each.double() ** 2).sum(dim=1) for each in (self.left, self.right))
        squares = take_rows(torch.outer(left, right).flatten(), self.spans)
        return abs(self.scale) * math.sqrt(squares.sum().item())


def take_rows(tensor: torch.Tensor, spans: tuple[Span, ...]) -> torch.Tensor:
    """Return the rows [start, stop) of each span, one after the other; not copied if they are all.

    Args:
        tensor: [rows, …].
        spans: at least one.
    """
    if len(spans) == 1:
        start, stop = spans[0]
        return tensor[start:stop]
    return torch.cat([tensor[start:stop] for start, stop in spans])


class KroneckerDown(nn.Module):
    """x [..., n q] -> [..., n p]: R on each piece of the input."""

    def __init__(self, right: torch.Tensor) -> None:
        """Keep R [p, q], frozen."""
        super().__init__()
        self.weight = nn.Parameter(right, requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return R applied to each of the n pieces of `tokens` [..., n q]."""
        pieces = tokens.reshape(*tokens.shape[:-1], -1, self.weight.shape[1])
        return functional.linear(pieces, self.weight).flatten(-2)


class KroneckerUp(nn.Module):
    """[..., n p] -> [..., out]: L across the pieces, then this layer's rows."""

    def __init__(self, left: torch.Tensor, spans: tuple[Span, ...]) -> None:
        """Keep L [m, n], frozen, and the rows to give."""
        super().__init__()
        self.weight = nn.Parameter(left, requires_grad=False)
        self.spans = spans

    def forward(self, pieces: torch.Tensor) -> torch.Tensor:
        """Return the layer's rows of L applied across `pieces` [..., n p]."""
        parts = pieces.reshape(*pieces.shape[:-1], self.weight.shape[1], -1)
        every = torch.matmul(self.weight, parts).flatten(-2)
        return torch.cat([every[..., start:stop] for start, stop in self.spans], dim=-1)
