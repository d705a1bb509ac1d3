"""An adapter whose blocks are stronger or weaker than they were trained.

A strength s of a block makes its Delta W s times as large: B becomes s B. A and alpha stay, so
that every reader of LoRA files gets it right. That is for plain LoRA alone: what is no plain LoRA
is written as it came, and DoRA's change is not linear in its strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stages.adapters.listing import list_names
from stages.adapters.module import Adapter, Change, plain_pairs
from stages.adapters.partition import restrict
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, Problem
from stages.families.architecture import block_of


def require_scalable(adapter: Adapter, where: str, remedy: str) -> None:
    """Accept an adapter that is plain LoRA throughout.

    Raises:
        AdapterError: it has modules that are not; the message names them, `where` and `remedy`.
    """
    if odd := set(adapter.modules) - plain_pairs(adapter).keys():
        problem = Problem(where, f"no plain LoRA: {list_names(odd)}", remedy)
        raise AdapterError("Only plain LoRA can be given strengths other than 0 and 1", [problem])


def with_strengths(adapter: Adapter, strengths: Mapping[BlockId, float]) -> Adapter:
    """Return the blocks named in `strengths`, each at its strength; strength 1 changes no bit.

    Raises:
        AdapterError: a block is not present, or one that is no plain LoRA has another strength.
    """
    kept = restrict(adapter, strengths)
    scaled = {
        module: pair for module, pair in kept.modules.items() if strengths[block_of(module)] != 1.0
    }
    require_scalable(Adapter(scaled, {}), "adapter", "Leave their blocks at strength 1.")
    modules: dict[str, Change] = dict(kept.modules)
    for module, pair in plain_pairs(Adapter(scaled, {})).items():
        modules[module] = replace(pair, up=pair.up * strengths[block_of(module)])
    return replace(kept, modules=modules)
