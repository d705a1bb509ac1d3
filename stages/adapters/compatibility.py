"""Whether an adapter fits a base model: its modules exist there, with its shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from stages.adapters.listing import list_names
from stages.adapters.module import Adapter
from stages.contracts.errors import AdapterError, Problem
from stages.families.architecture import block_of

Shape = tuple[int, int]
"""Shape of a Linear layer's weight: (out, in)."""

_REMEDY = (
    "It was trained for another architecture: set params fetch to the base model it was made for, "
    "or use a LoRA made for this one."
)


def linear_shapes(transformer: nn.Module) -> dict[str, Shape]:
    """Return the weight shape of every Linear layer, by name; none of it may carry an adapter."""
    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear)
    }


def require_modules(modules: Collection[str], shapes: Mapping[str, Shape]) -> None:
    """Accept modules that the base model has.

    Raises:
        AdapterError: the base model lacks some; all of them are named.
    """
    if problems := _unknown(modules, shapes):
        raise AdapterError("The adapter does not fit the base model", problems)


def require_fit(adapter: Adapter, shapes: Mapping[str, Shape]) -> None:
    """Accept an adapter whose modules the base model has, in the same shapes.

    Raises:
        AdapterError: modules are unknown or of another shape; all of them are named.
    """
    wrong = [
        f"{module} (adapter {_shape(adapter, module)}, base {shapes[module]})"
        for module in adapter.modules.keys() & shapes.keys()
        if _shape(adapter, module) != shapes[module]
    ]
    problems = _unknown(adapter.modules, shapes) + _block_problems(adapter.modules, shapes)
    if wrong:
        problems.append(Problem("shapes [out, in]", f"differ: {list_names(wrong)}", _REMEDY))
    if problems:
        raise AdapterError("The adapter does not fit the base model", problems)


def _shape(adapter: Adapter, module: str) -> Shape:
    return adapter.modules[module].shape


def _unknown(modules: Collection[str], shapes: Mapping[str, Shape]) -> list[Problem]:
    unknown = set(modules) - shapes.keys()
    if not unknown:
        return []
    return [Problem("modules", f"not in the base model: {list_names(unknown)}", _REMEDY)]


def _block_problems(modules: Collection[str], shapes: Mapping[str, Shape]) -> list[Problem]:
    theirs, ours = _counts(modules), _counts(shapes)
    if all(theirs[stack] <= ours[stack] for stack in ours):
        return []
    what = f"the adapter's go up to {_shown(theirs)}, the base model has {_shown(ours)}"
    return [Problem("blocks", what, _REMEDY)]


def _counts(modules: Collection[str]) -> dict[str, int]:
    """Return how many blocks of each stack there are, by the highest number."""
    counts = {"double": 0, "single": 0}
    for module in modules:
        block = block_of(module)
        if block.stack in counts:
            counts[block.stack] = max(counts[block.stack], block.index + 1)
    return counts


def _shown(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {stack} blocks" for stack, count in counts.items())
