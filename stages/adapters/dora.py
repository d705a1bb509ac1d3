"""DoRA's change of a Linear layer, which depends on the base weight.

W' = g (W + s B A), where g = magnitude / |W + s B A| for every row, or for every column (DoRA,
arXiv 2402.09353; ComfyUI, comfy/weight_adapter/base.py, weight_decompose). So Delta W = W' - W is
one fixed matrix, and a gate a gives W + a (W' - W): exact at 0 and 1, and in between what ComfyUI
makes of a strength. PEFT and LyCORIS scale B A before the norm is taken, which is another curve
between the same two ends. At 1 this is the trainers' W'; ComfyUI takes a row's norm without B A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from stages.adapters.pair import LoraPair, Origin


@dataclass(frozen=True, eq=False)
class DoraPair:
    """B A, and the magnitude of every row [out, 1] or every column [1, in] of W'; float32."""

    pair: LoraPair
    magnitude: torch.Tensor
    origin: Origin

    @property
    def rank(self) -> int:
        """The rank of B A; Delta W's is higher."""
        return self.pair.rank

    @property
    def alpha(self) -> float:
        """What makes alpha / rank 1: the scale of B A is inside of Delta W."""
        return float(self.rank)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of Delta W: (out, in)."""
        return self.pair.shape

    @property
    def parameters(self) -> int:
        """Numbers in A, B and the magnitude together."""
        return self.pair.parameters + self.magnitude.numel()

    def gain(self, weight: torch.Tensor) -> torch.Tensor:
        """Return g, [out, 1] or [1, in], for the layer's weight [out, in]."""
        along = 1 if self.magnitude.shape[1] == 1 else 0
        changed = weight.float() + self.pair.delta().to(weight.device)
        norm = torch.linalg.vector_norm(changed, dim=along, keepdim=True)
        gain: torch.Tensor = self.magnitude.to(weight.device) / norm
        return gain

    def delta(self, weight: torch.Tensor) -> torch.Tensor:
        """Return Delta W [out, in], float32, for the layer's weight [out, in]."""
        changed = weight.float() + self.pair.delta().to(weight.device)
        return self.gain(weight) * changed - weight.float()


class DoraDown(nn.Module):
    """x [..., in] -> [..., rank + out]: A x beside W x."""

    def __init__(self, down: torch.Tensor, base: nn.Linear, gain: torch.Tensor) -> None:
        """Keep A [rank, in], frozen, and the base layer, which stays where it is.

        Args:
            down: A.
            base: the layer that is changed; not registered here, so that it has one name.
            gain: g, [out, 1] or [1, in].
        """
        super().__init__()
        self.weight = nn.Parameter(down, requires_grad=False)
        self.register_buffer("gain", gain, persistent=False)
        self._base = (base,)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return A g x and W (g - 1) x where g is of columns, and A x and W x where it is not."""
        gain = self.get_buffer("gain")
        narrow = whole = tokens
        if gain.shape[0] == 1:
            narrow, whole = tokens * gain[0], tokens * (gain[0] - 1.0)
        (base,) = self._base
        wide = base(whole.to(base.weight.dtype))
        if base.bias is not None:
            wide = wide - base.bias
        return torch.cat([functional.linear(narrow, self.weight), wide.to(tokens.dtype)], dim=-1)


class DoraUp(nn.Module):
    """[..., rank + out] -> [..., out]: Delta W x from its two parts."""

    def __init__(self, up: torch.Tensor, gain: torch.Tensor) -> None:
        """Keep s B [out, rank], frozen, and g."""
        super().__init__()
        self.weight = nn.Parameter(up, requires_grad=False)
        self.register_buffer("gain", gain, persistent=False)

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        """Return g s B A x + (g - 1) W x where g is of rows, and the plain sum where it is not."""
        gain = self.get_buffer("gain")
        rank = self.weight.shape[1]
        narrow, wide = parts[..., :rank], parts[..., rank:]
        change = functional.linear(narrow, self.weight)
        if gain.shape[0] == 1:
            return change + wide
        rows = gain[:, 0]
        return rows * change + (rows - 1.0) * wide
