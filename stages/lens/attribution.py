"""How much each block, or a set of blocks, contributes to what a LoRA does to the velocity.

For a probe let v(a) be the velocity with gates a, 0 <= a <= 1. Then

    P(a) = <v(a) - v(0), v(1) - v(0)> / |v(1) - v(0)|^2

is 0 without and 1 with the LoRA. The share of block b is the integral over s in [0, 1] of
dP/da_b at a = s (1, ..., 1): integrated gradients along the diagonal (Sundararajan et al., 2017,
arXiv 1703.01365), which is the Aumann-Shapley value of block b. The shares of a probe add up to
P(1) - P(0) = 1, but for the error of the quadrature.

This module knows no model: a velocity is a function of probes and gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from stages.contracts.errors import AdapterError, Problem

Velocity: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From indices of probes [B] and their gates [B, blocks] to their velocities [B, ...].

Gates may have a third axis, for what of a block's work they scale.
"""


@dataclass(frozen=True)
class Effect:
    """What the whole LoRA does to the velocity of each of S probes.

    `base` [S, ...] is v(0), and `direction` [S, ...] is (v(1) - v(0)) / |v(1) - v(0)|^2.
    """

    velocity: Velocity
    blocks: int
    base: torch.Tensor
    direction: torch.Tensor

    def __len__(self) -> int:
        """Return the number of probes."""
        return len(self.base)

    def of_blocks(self, kept: npt.NDArray[np.bool_]) -> Effect:
        """Return the effect of the blocks `kept` [blocks] along the whole LoRA's direction.

        P(1) is then P(1_kept), and so is the sum of the shares; the other blocks have none.
        """
        mask = torch.from_numpy(kept.astype(np.float32))
        return replace(self, velocity=lambda indices, gates: self.velocity(indices, gates * mask))


def measure_effect(velocity: Velocity, probes: int, blocks: int, batch: int) -> Effect:
    """Return the effect of all `blocks` together on each of `probes` probes.

    Raises:
        AdapterError: a probe's velocity is the same with and without the LoRA, or not finite.
    """
    with torch.no_grad():
        base, full = (
            torch.cat(
                [
                    velocity(indices, torch.full((len(indices), blocks), gate)).float()
                    for indices in torch.split(torch.arange(probes), batch)
                ]
            )
            for gate in (0.0, 1.0)
        )
    change = full - base
    squared = _sum(change.double().square())
    if not torch.isfinite(squared).all():
        raise _immeasurable("gives velocities that are not finite", "Check params model.precision.")
    if (squared == 0).any():
        raise _immeasurable("does not change the velocity", "Train it longer, or name another one.")
    direction = change / squared.to(change.dtype).view(-1, *[1] * (change.ndim - 1))
    return Effect(velocity, blocks, base, direction)


def relative_effect(effect: Effect) -> npt.NDArray[np.float64]:
    """Return |v(1) - v(0)| / |v(0)| [S]: how much the LoRA changes the velocity of each probe."""
    change = _sum(effect.direction.double().square()).rsqrt()
    base = _sum(effect.base.double().square()).sqrt()
    ratio: npt.NDArray[np.float64] = (change / base).cpu().numpy()
    return ratio


def block_shares(
    effect: Effect, nodes: int, batch: int, streams: int | None = None
) -> npt.NDArray[np.float64]:
    """Return the shares [S, blocks] of the blocks at each probe, by `nodes` Gauss-Legendre nodes.

    One backward pass per node and batch gives the shares of all blocks. Nothing is normalised:
    how far a probe's sum is from 1 is the quadrature's error.

    With `streams` the velocity is asked for gates [B, blocks, streams], and the shares are
    [S, blocks, streams], at the same cost; by the chain rule they add up to the block's.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    shape = (effect.blocks,) if streams is None else (effect.blocks, streams)
    shares = torch.zeros(len(effect), *shape, dtype=torch.float64)
    for indices in torch.split(torch.arange(len(effect)), batch):
        for point, weight in zip(points, weights, strict=True):
            position = (point + 1.0) / 2.0  # from [-1, 1] to [0, 1]
            gates = torch.full((len(indices), *shape), float(position), requires_grad=True)
            projection = _project(effect, indices, effect.velocity(indices, gates))
            (slope,) = torch.autograd.grad(projection.sum(), gates)
            shares[indices] += weight / 2.0 * slope.double().cpu()
    return shares.numpy()


def score_sets(effect: Effect, sets: npt.NDArray[np.bool_], batch: int) -> npt.NDArray[np.float64]:
    """Return P(1_S), averaged over the probes, of each set S [sets, blocks]: one forward pass each.

    Sets share batches, so many sets on few probes cost what one set on many probes does.
    """
    return _score(effect, sets, batch, _project)


def score_recoveries(
    effect: Effect, strengths: npt.NDArray[np.float64], batch: int
) -> npt.NDArray[np.float64]:
    """Return R(a), averaged over the probes, of each row a of `strengths` [rows, blocks].

    R(a) = 1 - |v(a) - v(1)|^2 / |v(1) - v(0)|^2 is the recovery of velocities. Unlike P it sees
    what goes across the LoRA's direction; below 0 the row is farther from the LoRA than nothing.
    One forward pass per row and probe.
    """
    return _score(effect, strengths, batch, _recover)


@torch.no_grad()
def _score(
    effect: Effect,
    rows: npt.NDArray[np.bool_] | npt.NDArray[np.float64],
    batch: int,
    judge: Callable[[Effect, torch.Tensor, torch.Tensor], torch.Tensor],
) -> npt.NDArray[np.float64]:
    gates = torch.from_numpy(np.asarray(rows, dtype=np.float32))
    pairs = torch.cartesian_prod(torch.arange(len(gates)), torch.arange(len(effect)))
    judged = [
        judge(effect, part[:, 1], effect.velocity(part[:, 1], gates[part[:, 0]])).cpu()
        for part in torch.split(pairs, batch)
    ]
    scores: npt.NDArray[np.float64] = (
        torch.cat(judged).reshape(len(gates), len(effect)).mean(dim=1).numpy()
    )
    return scores


def _recover(effect: Effect, indices: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """Return R [B], float64, of the velocities [B, ...] of the probes `indices`."""
    direction = effect.direction[indices].double()
    # The whole change has length 1 / |direction|, hence its square and itself:
    squared = 1.0 / _sum(direction.square())
    change = direction * squared.view(-1, *[1] * (direction.ndim - 1))
    missing = (velocity.float() - effect.base[indices]).double() - change
    return 1.0 - _sum(missing.square()) / squared


def _immeasurable(what: str, remedy: str) -> AdapterError:
    return AdapterError(
        "The adapter's effect cannot be measured", [Problem("adapter", what, remedy)]
    )


def _project(effect: Effect, indices: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """Return P [B], float64, of the velocities [B, ...] of the probes `indices`."""
    moved = (velocity.float() - effect.base[indices]).double()
    return _sum(moved * effect.direction[indices].double())


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(start_dim=1).sum(dim=1)
