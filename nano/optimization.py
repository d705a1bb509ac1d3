"""The two optimisers of the trainings of transformers, stepped and saved as one."""

from typing import Any, Final

import torch
from torch import nn

_MOMENTUM: Final = 0.95
_BETAS: Final = (0.9, 0.95)
_COEFFICIENTS: Final = (3.4445, -4.775, 2.0315)
_ITERATIONS: Final = 5
_SMALLEST_NORM: Final = 1e-7


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """(count, rows, columns), rows <= columns, with all singular values brought near 1; bfloat16.

    Newton-Schulz iteration of Muon, source: torch.optim.Muon, here for many matrices at once.
    """
    first, second, third = _COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(_SMALLEST_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        x = torch.baddbmm(x, update, x, beta=first)
    return x


class BatchedMuon:
    """torch.optim.Muon (`match_rms_adamw`, nesterov, no weight decay), matrices of a shape at once.

    A convolution counts as a matrix of one row per output channel. A model of 57 blocks has
    494 small matrices; one by one they take longer than the model itself.
    """

    def __init__(self, weights: list[nn.Parameter]) -> None:
        groups: dict[torch.Size, list[torch.Tensor]] = {}
        for weight in weights:
            groups.setdefault(weight.shape, []).append(weight)
        self._groups = list(groups.values())
        self._momenta = [torch.zeros(len(group), *group[0].shape) for group in self._groups]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Applies the gradients."""
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradients = torch.stack([w.grad for w in group if w.grad is not None])
            momentum.lerp_(gradients, 1 - _MOMENTUM)
            update = gradients.lerp_(momentum, _MOMENTUM).flatten(2)
            _, rows, columns = update.shape
            tall = rows > columns
            update = orthogonalise(update.mT if tall else update)
            update = (update.mT if tall else update).float()
            scale = 0.2 * max(rows, columns) ** 0.5  # the size of AdamW's updates, arXiv 2502.16982
            updates = list(update.reshape(gradients.shape).unbind())
            torch._foreach_add_(group, updates, alpha=-learning_rate * scale)

    def state_dict(self) -> list[torch.Tensor]:
        """The momenta, one stack per shape."""
        return self._momenta

    def load_state_dict(self, momenta: list[torch.Tensor]) -> None:
        """Restores the momenta."""
        for own, saved in zip(self._momenta, momenta, strict=True):
            own.copy_(saved)


class MuonAndAdamW:
    """Muon for the matrices inside the blocks, AdamW for all other weights, at one rate.

    Blocks are the modules of `model` whose names begin with `block_prefixes`.
    """

    def __init__(
        self, model: nn.Module, block_prefixes: tuple[str, ...], learning_rate: float
    ) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                in_block = name.startswith(block_prefixes) and weight.ndim >= 2
                (matrices if in_block else rest).append(weight)
        self._learning_rate = learning_rate
        self._muon = BatchedMuon(matrices)
        self._adamw = torch.optim.AdamW(
            rest, lr=learning_rate, weight_decay=0.0, betas=_BETAS, fused=True
        )
        self._weights = [*matrices, *rest]

    def step(self, factor: float) -> None:
        """Applies the gradients at `factor` times the learning rate, and clears them."""
        nn.utils.clip_grad_norm_(self._weights, 1.0, foreach=True)
        rate = self._learning_rate * factor
        self._muon.step(rate)
        self._adamw.param_groups[0]["lr"] = rate
        self._adamw.step()
        for weight in self._weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of both."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])
