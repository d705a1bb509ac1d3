"""Whether an adapter fits a base model: its modules exist there, with its shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from stages.adapters.listing import list_names
from stages.adapters.module import Adapter
from stages.contracts.errors import AdapterError, Problem

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
    problems = _unknown(adapter.modules, shapes)
    if wrong:
        problems.append(Problem("shapes [out, in]", f"differ: {list_names(wrong)}", _REMEDY))
    if problems:
        raise AdapterError("The adapter does not fit the base model", problems)


def _shape(adapter: Adapter, module: str) -> Shape:
    pair = adapter.modules[module]
    return (pair.up.shape[0], pair.down.shape[1])


def _unknown(modules: Collection[str], shapes: Mapping[str, Shape]) -> list[Problem]:
    unknown = set(modules) - shapes.keys()
    what = f"not in the base model: {list_names(unknown)}"
    return [Problem("modules", what, _REMEDY)] if unknown else []
