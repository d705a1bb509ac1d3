"""How much each block, or a set of blocks, contributes to what a LoRA does to the velocity.

For a probe let v(a) be the velocity with gates a, 0 <= a <= 1. Then

    P(a) = <v(a) - v(0), v(1) - v(0)> / |v(1) - v(0)|^2

is 0 without and 1 with the LoRA. The share of block b is the integral over s in [0, 1] of
dP/da_b at a = s (1, ..., 1): integrated gradients along the diagonal (Sundararajan et al., 2017,
arXiv 1703.01365), which is the Aumann-Shapley value of block b. The shares of a probe add up to
P(1) - P(0) = 1, but for the error of the quadrature.

This module knows no model: it asks for velocities, and for what is computed of them where the model
is (lens/questions.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from stages.contracts.errors import AdapterError, Problem
from stages.lens.questions import Ask, Question, Velocity


@dataclass(frozen=True)
class Effect:
    """What the whole LoRA does to the velocity of each of S probes.

    `base` [S, ...] is v(0), and `direction` [S, ...] is (v(1) - v(0)) / |v(1) - v(0)|^2. `mask`
    [blocks] is 0 for blocks that stay off whatever their gates.
    """

    ask: Ask
    mask: torch.Tensor
    base: torch.Tensor
    direction: torch.Tensor

    def __len__(self) -> int:
        """Return the number of probes."""
        return len(self.base)

    @property
    def blocks(self) -> int:
        """Return the number of blocks."""
        return len(self.mask)

    def at(self, indices: torch.Tensor) -> Line:
        """Return where the velocities of the probes `indices` move."""
        return Line(self.base[indices], self.direction[indices])

    def of_blocks(self, kept: npt.NDArray[np.bool_]) -> Effect:
        """Return the effect of the blocks `kept` [blocks] along the whole LoRA's direction.

        P(1) is then P(1_kept), and so is the sum of the shares; the other blocks have none.
        """
        return replace(self, mask=torch.from_numpy(kept.astype(np.float32)))


@dataclass(frozen=True)
class Line:
    """The base and the direction of B probes, as of an effect."""

    base: torch.Tensor
    direction: torch.Tensor

    def moved(self, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `velocity` - base and the direction, float64 [B, ...], on the device of both."""
        base = self.base.to(velocity.device)
        direction = self.direction.to(velocity.device)
        return (velocity.float() - base).double(), direction.double()

    def project(self, velocity: torch.Tensor) -> torch.Tensor:
        """Return P [B], float64, of the velocities [B, ...]."""
        moved, direction = self.moved(velocity)
        return _sum(moved * direction)

    def recover(self, velocity: torch.Tensor) -> torch.Tensor:
        """Return R [B], float64, of the velocities [B, ...]."""
        moved, direction = self.moved(velocity)
        # The whole change has length 1 / |direction|, hence its square and itself:
        squared = 1.0 / _sum(direction.square())
        change = direction * squared.view(-1, *[1] * (direction.ndim - 1))
        return 1.0 - _sum((moved - change).square()) / squared


def measure_effect(ask: Ask, probes: int, blocks: int, batch: int) -> Effect:
    """Return the effect of all `blocks` together on each of `probes` probes.

    Raises:
        AdapterError: a probe's velocity is the same with and without the LoRA, or not finite.
    """
    parts = torch.split(torch.arange(probes), batch)
    velocities = torch.cat(
        [
            *ask(
                (indices, partial(_velocities, gates=torch.full((len(indices), blocks), gate)))
                for gate in (0.0, 1.0)
                for indices in parts
            )
        ]
    )
    base, full = velocities[:probes], velocities[probes:]
    change = full - base
    squared = _sum(change.double().square())
    if not torch.isfinite(squared).all():
        raise _immeasurable("gives velocities that are not finite", "Check params model.precision.")
    if (squared == 0).any():
        raise _immeasurable("does not change the velocity", "Train it longer, or name another one.")
    direction = change / squared.to(change.dtype).view(-1, *[1] * (change.ndim - 1))
    return Effect(ask, torch.ones(blocks), base, direction)


def relative_effect(effect: Effect) -> npt.NDArray[np.float64]:
    """Return |v(1) - v(0)| / |v(0)| [S]: how much the LoRA changes the velocity of each probe."""
    change = _sum(effect.direction.double().square()).rsqrt()
    base = _sum(effect.base.double().square()).sqrt()
    ratio: npt.NDArray[np.float64] = (change / base).numpy()
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
    mask = effect.mask if streams is None else effect.mask[:, None].expand(-1, streams)
    shares = effect.ask(
        (indices, partial(_shares, line=effect.at(indices), mask=mask.contiguous(), nodes=nodes))
        for indices in torch.split(torch.arange(len(effect)), batch)
    )
    found: npt.NDArray[np.float64] = torch.cat([*shares]).numpy()
    return found


def score_sets(effect: Effect, sets: npt.NDArray[np.bool_], batch: int) -> npt.NDArray[np.float64]:
    """Return P(1_S), averaged over the probes, of each set S [sets, blocks]: one forward pass each.

    Sets share batches, so many sets on few probes cost what one set on many probes does.
    """
    return _score(effect, sets, batch, Line.project)


def score_recoveries(
    effect: Effect, strengths: npt.NDArray[np.float64], batch: int
) -> npt.NDArray[np.float64]:
    """Return R(a), averaged over the probes, of each row a of `strengths` [rows, blocks].

    R(a) = 1 - |v(a) - v(1)|^2 / |v(1) - v(0)|^2 is the recovery of velocities. Unlike P it sees
    what goes across the LoRA's direction; below 0 the row is farther from the LoRA than nothing.
    One forward pass per row and probe.
    """
    return _score(effect, strengths, batch, Line.recover)


def _score(
    effect: Effect,
    rows: npt.NDArray[np.bool_] | npt.NDArray[np.float64],
    batch: int,
    judge: Callable[[Line, torch.Tensor], torch.Tensor],
) -> npt.NDArray[np.float64]:
    gates = torch.from_numpy(np.asarray(rows, dtype=np.float32)) * effect.mask
    pairs = torch.cartesian_prod(torch.arange(len(gates)), torch.arange(len(effect)))

    def question(part: torch.Tensor) -> Question:
        probes = part[:, 1]
        asked = partial(_judged, gates=gates[part[:, 0]], line=effect.at(probes), judge=judge)
        return probes, asked

    judged = effect.ask(question(part) for part in torch.split(pairs, batch))
    scores: npt.NDArray[np.float64] = (
        torch.cat([*judged]).reshape(len(gates), len(effect)).mean(dim=1).numpy()
    )
    return scores


@torch.no_grad()
def _velocities(velocity: Velocity, gates: torch.Tensor) -> torch.Tensor:
    """Return the velocities [B, ...], float32, of the gates [B, blocks]."""
    return velocity(torch.arange(len(gates)), gates).float().cpu()


def _shares(velocity: Velocity, line: Line, mask: torch.Tensor, nodes: int) -> torch.Tensor:
    """Return the shares [B, blocks(, streams)], float64; `mask` has the gates' shape."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    count = len(line.base)
    shares = torch.zeros(count, *mask.shape, dtype=torch.float64)
    for point, weight in zip(points, weights, strict=True):
        position = (point + 1.0) / 2.0  # from [-1, 1] to [0, 1]
        gates = torch.full((count, *mask.shape), float(position), requires_grad=True)
        projection = line.project(velocity(torch.arange(count), gates * mask))
        (slope,) = torch.autograd.grad(projection.sum(), gates)
        shares += weight / 2.0 * slope.double().cpu()
    return shares


@torch.no_grad()
def _judged(
    velocity: Velocity,
    gates: torch.Tensor,
    line: Line,
    judge: Callable[[Line, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return what `judge` says [B], float64, of the gates [B, blocks]."""
    return judge(line, velocity(torch.arange(len(gates)), gates)).cpu()


def _immeasurable(what: str, remedy: str) -> AdapterError:
    return AdapterError(
        "The adapter's effect cannot be measured", [Problem("adapter", what, remedy)]
    )


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(start_dim=1).sum(dim=1)
