"""Noise as large as what an adapter learnt, in its place: is a block sensitive, or did it learn?

A block whose noise changes a picture as much as its trained weights do is merely sensitive. One
that does much more than its noise has learnt something.
"""

from __future__ import annotations

from dataclasses import replace

from stages.adapters.dora import DoraPair
from stages.adapters.kronecker import KroneckerPair
from stages.adapters.listing import list_names
from stages.adapters.module import Adapter
from stages.adapters.norms import delta_norm
from stages.adapters.pair import LoraPair
from stages.contracts.errors import AdapterError, Problem
from stages.families.noise import keyed_normal


def matched_noise(adapter: Adapter, seed: int) -> Adapter:
    """Return an adapter of normal draws with every module's own rank, alpha and |Delta W|_F.

    A draw depends on the seed and the module's name alone. LoKr's noise is a Kronecker product.

    Raises:
        AdapterError: the adapter has DoRA, whose Delta W is not known without the base weights.
    """
    plain, decomposed = {}, []
    for module, change in adapter.modules.items():
        if isinstance(change, DoraPair):
            decomposed.append(module)
        else:
            plain[module] = _noise(change, module, seed)
    if decomposed:
        what = f"DoRA has no |Delta W| without base weights: {list_names(decomposed)}"
        remedy = "Set params render.random_seed to null, or use a plain LoRA."
        raise AdapterError("There is no noise to compare with", [Problem("adapter", what, remedy)])
    return Adapter(plain, {})


def _noise(pair: LoraPair | KroneckerPair, module: str, seed: int) -> LoraPair | KroneckerPair:
    if delta_norm(pair) == 0.0:  # alpha 0, or weights that were never trained: noise of that size
        return pair
    if isinstance(pair, KroneckerPair):
        left = keyed_normal(pair.left.shape, seed, "matched-noise", "left", module)
        right = keyed_normal(pair.right.shape, seed, "matched-noise", "right", module)
        drawn = replace(pair, left=left, right=right)
        return replace(drawn, left=left * (delta_norm(pair) / delta_norm(drawn)))
    down = keyed_normal(pair.down.shape, seed, "matched-noise", "down", module)
    up = keyed_normal(pair.up.shape, seed, "matched-noise", "up", module)
    factor = delta_norm(pair) / delta_norm(LoraPair(down, up, pair.alpha))
    return LoraPair(down, factor * up, pair.alpha)
