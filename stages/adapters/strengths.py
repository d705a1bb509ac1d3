"""An adapter whose blocks are stronger or weaker than they were trained.

A strength s of a block makes its Delta W s times as large: B becomes s B. A and alpha stay, so
that every reader of LoRA files gets it right. LoHa and LoKr are linear in each of their factors, of
which the first one is scaled. DoRA's change is not linear in any of its tensors, so that no file
of a DoRA at another strength than 0 and 1 can be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from stages.adapters.dora import DoraPair
from stages.adapters.kronecker import KroneckerPair
from stages.adapters.listing import list_names
from stages.adapters.module import Adapter, Change
from stages.adapters.pair import LoraPair, Origin
from stages.adapters.partition import restrict
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, Problem
from stages.families.architecture import block_of

_FIRST_FACTOR: Final = (".hada_w1_a", ".lokr_w1", ".lokr_w1_a")


def require_scalable(adapter: Adapter, where: str, remedy: str) -> None:
    """Accept an adapter without DoRA.

    Raises:
        AdapterError: it has DoRA; the message names the modules, `where` and `remedy`.
    """
    odd = [name for name, change in adapter.modules.items() if isinstance(change, DoraPair)]
    if odd:
        problem = Problem(where, f"is DoRA, which is not linear: {list_names(odd)}", remedy)
        raise AdapterError("DoRA cannot be given strengths other than 0 and 1", [problem])


def with_strengths(adapter: Adapter, strengths: Mapping[BlockId, float]) -> Adapter:
    """Return the blocks named in `strengths`, each at its strength; strength 1 changes no bit.

    Raises:
        AdapterError: a block is not present, or one that has DoRA has another strength.
    """
    kept = restrict(adapter, strengths)
    touched = {
        name: change for name, change in kept.modules.items() if strengths[block_of(name)] != 1.0
    }
    require_scalable(Adapter(touched, {}), "adapter", "Leave their blocks at strength 1.")
    origins: dict[int, Origin] = {}  # one layer of the file may be several of ours
    modules: dict[str, Change] = dict(kept.modules)
    for name, change in touched.items():
        modules[name] = _scaled(change, strengths[block_of(name)], origins)
    return replace(kept, modules=modules)


def _scaled(change: Change, strength: float, origins: dict[int, Origin]) -> Change:
    origin = change.origin
    if origin is not None:
        origin = origins.setdefault(id(origin), _scaled_origin(origin, strength))
    match change:
        case LoraPair():
            return replace(change, up=change.up * strength, origin=origin)
        case KroneckerPair() if origin is not None:
            return replace(change, left=change.left * strength, origin=origin)
    raise ValueError(f"a {type(change).__name__} has no strength")


def _scaled_origin(origin: Origin, strength: float) -> Origin:
    """Return the layer with its first factor scaled, in float32."""
    tensors = {
        name: tensor.float() * strength if name.endswith(_FIRST_FACTOR) else tensor
        for name, tensor in origin.tensors.items()
    }
    return replace(origin, tensors=tensors)
