"""An adapter at a smaller rank: for each layer the nearest Delta W of that rank.

By Eckart and Young (Psychometrika 1, 1936) that is the singular value decomposition's first part.
B A is never formed: with B = Q R and A^T = P S the decomposition is that of R S^T [rank, rank].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from stages.adapters.listing import list_names
from stages.adapters.module import Adapter, Change
from stages.adapters.pair import LoraPair
from stages.contracts.errors import AdapterError, Problem


def require_rankable(adapter: Adapter, ranks: Mapping[str, int]) -> None:
    """Raise AdapterError unless each of `ranks`, by its place in params, makes the adapter smaller.

    Raises:
        AdapterError: it has LoKr or DoRA, or no layer's rank is above one of `ranks`.
    """
    problems = []
    odd = [name for name, change in adapter.modules.items() if not isinstance(change, LoraPair)]
    if odd:
        what = f"LoKr and DoRA have no smaller rank: {list_names(odd)}"
        problems.append(Problem(str(next(iter(ranks))), what, "Set slim.ranks to []."))
    pairs = [change for change in adapter.modules.values() if isinstance(change, LoraPair)]
    largest = max((pair.rank for pair in pairs), default=0)
    problems += [
        Problem(where, f"{rank} is no less than the adapter's own rank {largest}", "Leave it out.")
        for where, rank in ranks.items()
        if pairs and rank >= largest
    ]
    if problems:
        raise AdapterError("The adapter cannot be given a smaller rank", problems)


def at_rank(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """Return the adapter with no layer above `rank`, and |Delta W - its| / |Delta W| of all layers.

    Layers of a smaller rank stay as they are. LoHa becomes a plain LoRA.

    Raises:
        ValueError: a layer is no product of two matrices; see `require_rankable`.
    """
    modules: dict[str, Change] = {}
    left_out = whole = 0.0
    for name, change in adapter.modules.items():
        if not isinstance(change, LoraPair):
            raise ValueError(f"{name} is no plain LoRA")
        modules[name], dropped, total = _truncated(change, rank)
        left_out, whole = left_out + dropped, whole + total
    error = (left_out / whole) ** 0.5 if whole > 0.0 else 0.0
    return replace(adapter, modules=modules), error


def _truncated(pair: LoraPair, rank: int) -> tuple[LoraPair, float, float]:
    """Return the nearest pair of `rank`, and the squared norms of what is left out and of all."""
    up_basis, up_rest = torch.linalg.qr(pair.up.double())
    down_basis, down_rest = torch.linalg.qr(pair.down.double().T)
    left, values, right = torch.linalg.svd(pair.scale * up_rest @ down_rest.T)
    squares = values.square()
    total = float(squares.sum())
    if pair.rank <= rank:
        return pair, 0.0, total
    # Each matrix gets the root of the singular values, as large as the other.
    roots = values[:rank].sqrt()
    nearest = LoraPair(
        (roots[:, None] * right[:rank] @ down_basis.T).float().contiguous(),
        (up_basis @ left[:, :rank] * roots).float().contiguous(),
        float(rank),
    )
    return nearest, float(squares[rank:].sum()), total
