"""Noise in place of what an adapter learnt, as large as it: is a block touchy, or did it learn?

A block whose noise changes a picture as much as its trained weights do is touchy. One that does
much more than its noise has learnt something.
"""

from __future__ import annotations

from stages.adapters.module import Adapter, LoraPair
from stages.adapters.norms import delta_norm
from stages.families.noise import keyed_normal


def matched_noise(adapter: Adapter, seed: int) -> Adapter:
    """Return an adapter of normal draws with every module's own rank, alpha and |Delta W|_F.

    A draw depends on the seed and the module's name alone.
    """
    return Adapter(
        {module: _noise(pair, module, seed) for module, pair in adapter.modules.items()}, {}
    )


def _noise(pair: LoraPair, module: str, seed: int) -> LoraPair:
    down = keyed_normal(pair.down.shape, seed, "matched-noise", "down", module)
    up = keyed_normal(pair.up.shape, seed, "matched-noise", "up", module)
    factor = delta_norm(pair) / delta_norm(LoraPair(down, up, pair.alpha))
    return LoraPair(down, factor * up, pair.alpha)
