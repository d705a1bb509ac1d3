"""An adapter whose blocks are stronger or weaker than they were trained.

A strength s of a block makes its Delta W s times as large: B becomes s B. A and alpha stay, so
that every reader of LoRA files gets it right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stages.adapters.module import Adapter
from stages.adapters.partition import restrict
from stages.contracts.blocks import BlockId
from stages.families.architecture import block_of


def with_strengths(adapter: Adapter, strengths: Mapping[BlockId, float]) -> Adapter:
    """Return the blocks named in `strengths`, each at its strength; strength 1 changes no bit.

    Raises:
        AdapterError: a block is not present in the adapter.
    """
    kept = restrict(adapter, strengths)
    modules = {
        module: pair
        if (strength := strengths[block_of(module)]) == 1.0
        else replace(pair, up=pair.up * strength)
        for module, pair in kept.modules.items()
    }
    return replace(kept, modules=modules)
