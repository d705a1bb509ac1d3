"""An adapter taken apart by block, and put together again. No tensor is copied or changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from stages.adapters.listing import list_names
from stages.adapters.module import Adapter, Change
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, Problem
from stages.families.architecture import block_of


def split_by_block(adapter: Adapter) -> dict[BlockId, Adapter]:
    """Return one adapter per block present, in model order; each carries the metadata.

    The parts are a partition: no module is in two of them, and `join` gives the source again.
    """
    modules: dict[BlockId, dict[str, Change]] = {block: {} for block in adapter.blocks}
    for module, pair in adapter.modules.items():
        modules[block_of(module)][module] = pair
    return {block: Adapter(part, adapter.metadata) for block, part in modules.items()}


def restrict(adapter: Adapter, blocks: Collection[BlockId]) -> Adapter:
    """Return the part of the adapter that lies in `blocks`.

    Raises:
        AdapterError: a block is not present in the adapter, which is not the same as a block
            without effect.
    """
    if absent := set(blocks) - set(adapter.blocks):
        what = f"not present: {list_names([str(block) for block in absent])}"
        remedy = f"It has {list_names([str(block) for block in adapter.blocks]) or 'no blocks'}."
        raise AdapterError("The adapter lacks blocks", [Problem("adapter", what, remedy)])
    wanted = set(blocks)
    kept = {name: pair for name, pair in adapter.modules.items() if block_of(name) in wanted}
    return Adapter(kept, adapter.metadata)


def join(parts: Collection[Adapter]) -> Adapter:
    """Return the union of adapters that share no module, with the metadata all of them agree on.

    Raises:
        AdapterError: a module is in two parts.
    """
    counts = Counter(module for part in parts for module in part.modules)
    if twice := [module for module, count in counts.items() if count > 1]:
        problem = Problem("modules", f"in more than one part: {list_names(twice)}", "Leave one.")
        raise AdapterError("The parts overlap", [problem])
    modules = {module: pair for part in parts for module, pair in part.modules.items()}
    fields = [set(part.metadata.items()) for part in parts]
    return Adapter(modules, dict(sorted(set.intersection(*fields))) if fields else {})
