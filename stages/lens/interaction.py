"""How the blocks of a LoRA work on each other, and which of them can go together.

For a probe let v(S) be the velocity with the blocks S on, n all blocks, and

    u_b = ((v({b}) - v({})) + (v(n) - v(n without b))) / 2 / |v(n) - v({})|

the mean of what b does alone and what is lost without it. If the blocks T are dropped, then
v(n) - v(n without T) is about the sum of u_b over T, so that the part of the effect that is lost is

    L(T) = |v(n) - v(n without T)|^2 / |v(n) - v({})|^2, about the sum over b, c in T of <u_b, u_c>.

Blocks that cancel have a negative <u_b, u_c> and cost nothing together; blocks that do the same
have a positive one. Two forward passes per block and probe give a guess for every set, and guesses
are free. L counts what P of lens/attribution.py does not see: changes across the LoRA's direction.

The blocks that are kept can make up for the others in part, each by a strength of its own: with
strengths w (0 where dropped), L(w) is about the sum over b, c of (1 - w_b) (1 - w_c) <u_b, u_c>,
and the best w solves a linear system. A ridge holds w at 1, since what a block does is linear in
its strength only nearby, and since the probes are few.

This module knows no model: it asks for velocities as lens/attribution.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from stages.lens.attribution import Effect, Line
from stages.lens.questions import Velocity
from stages.lens.selection import for_their_prices

Array: TypeAlias = npt.NDArray[np.float64]
_DECIMALS: Final = 3


def measure_interaction(effect: Effect, batch: int) -> Iterator[Array]:
    """Yield <u_b, u_c> [blocks, blocks] of each probe; the sum over all pairs is about 1.

    A probe's velocities are held at once: 2 x blocks of them.
    """
    probes = torch.arange(len(effect))[:, None]
    answers = effect.ask(
        (probe, partial(_products, line=effect.at(probe), blocks=effect.blocks, batch=batch))
        for probe in probes
    )
    for answer in answers:
        products: Array = answer.numpy()
        yield products


@torch.no_grad()
def _products(velocity: Velocity, line: Line, blocks: int, batch: int) -> torch.Tensor:
    """Return <u_b, u_c> [blocks, blocks] of the only probe."""
    alone = torch.eye(blocks)
    gates = torch.cat([alone, 1.0 - alone])
    velocities = torch.cat(
        [
            velocity(torch.zeros(len(part), dtype=torch.long), part).float()
            for part in torch.split(gates, batch)
        ]
    ).flatten(start_dim=1)
    base = line.base.flatten().to(velocities.device)
    direction = line.direction.flatten().to(velocities.device)
    squared = 1.0 / direction.double().square().sum()  # |v(n) - v({})|^2
    full = base + direction * squared.to(direction.dtype)
    alone_changes = velocities[:blocks] - base
    changes = ((alone_changes + full - velocities[blocks:]) / 2.0).double()
    return (changes @ changes.T / squared).cpu()


def refit_strengths(products: Array, kept: npt.NDArray[np.bool_], ridge: float) -> Array:
    """Return the strengths [blocks] of the blocks `kept` that lose least; 0 for the others.

    They minimise L(w) + ridge * mean_b <u_b, u_b> * sum over kept of (1 - w_b)^2, rounded to
    thousandths so that the last bits of a sum decide nothing. A block that is kept keeps a
    strength: one that would be 0.000 is 0.001, so that the set is the one in the file.

    Args:
        products: <u_b, u_c> [blocks, blocks].
        kept: mask [blocks].
        ridge: above 0.
    """
    strengths = np.zeros(len(kept))
    inside = products[np.ix_(kept, kept)] + _penalty(products, ridge) * np.eye(int(kept.sum()))
    pulled = products[np.ix_(kept, ~kept)].sum(axis=1)
    fitted = np.round(1.0 + np.linalg.solve(inside, pulled), _DECIMALS)
    strengths[kept] = np.where(fitted == 0.0, 10.0**-_DECIMALS, fitted)
    return strengths


def lost(products: Array, strengths: npt.ArrayLike) -> float:
    """Return the guess of L for these strengths [blocks]; a dropped block's is 0."""
    missing = 1.0 - np.asarray(strengths, dtype=np.float64)
    return float(missing @ products @ missing)


def removal_order(products: Array, prices: Array, ridge: float | None) -> tuple[int, ...]:
    """Return the blocks from the one to keep longest to the one to drop first.

    Each step drops the block whose loss, per unit of its price (its bytes), adds least to L; the
    later block of the model if equal. With a `ridge`, L is that of the refitted strengths.
    """
    kept, reached = np.ones(len(prices), dtype=np.bool_), 0.0
    order: list[int] = []
    while kept.any():
        places = np.flatnonzero(kept).tolist()
        losses = np.array([_loss(products, _without(kept, place), ridge) for place in places])
        added = for_their_prices(losses - reached, prices[places])
        best = len(places) - 1 - int(np.argmin(added[::-1]))
        kept[places[best]], reached = False, losses[best]
        order.append(places[best])
    return tuple(reversed(order))


def _loss(products: Array, kept: npt.NDArray[np.bool_], ridge: float | None) -> float:
    """Return L of the blocks `kept`, with what the ridge makes their strengths cost."""
    if ridge is None:
        return lost(products, kept)
    strengths = refit_strengths(products, kept, ridge)
    moved = (1.0 - strengths[kept]) ** 2
    return lost(products, strengths) + _penalty(products, ridge) * float(moved.sum())


def _penalty(products: Array, ridge: float) -> float:
    return ridge * float(np.trace(products)) / len(products)


def _without(kept: npt.NDArray[np.bool_], place: int) -> npt.NDArray[np.bool_]:
    rest = kept.copy()
    rest[place] = False
    return rest
