"""Any optimiser's state as named tensors and named values, and back, to the last bit.

An optimiser keeps entries per parameter (moments, counts) and per group of parameters (Prodigy's
distance, schedule-free's sum of weights). Tensors are kept as they are, other values in JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

Json = Any
_SEPARATOR: Final = "|"  # occurs in no parameter name
_GROUP: Final = "group "
_MEMBERS: Final = "params"


@dataclass(frozen=True)
class OptimiserState:
    """Entries called `<parameter>|<entry>` and `group <number>|<entry>`."""

    tensors: Mapping[str, torch.Tensor]
    values: Mapping[str, Json]


def optimiser_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> OptimiserState:
    """Return all that `optimiser` keeps; the tensors are its own, not copies.

    Raises:
        TypeError: it keeps something else than tensors, numbers, texts, None and tuples of them.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Json] = {}
    for owner, entries in _owners(optimiser, parameters):
        for entry, value in entries.items():
            key = f"{owner}{_SEPARATOR}{entry}"
            if isinstance(value, torch.Tensor):
                tensors[key] = value
            elif entry != _MEMBERS:
                values[key] = _to_json(value, f"{type(optimiser).__name__} keeps {entry}")
    return OptimiserState(tensors, values)


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: OptimiserState,
) -> None:
    """Give a new optimiser the state that `optimiser_state` returned.

    The entries are put in place as they are: `load_state_dict` would cast them.
    """
    owners = dict(_owners(optimiser, parameters))
    device = next(iter(parameters.values())).device
    for key, tensor in state.tensors.items():
        owner, entry = key.split(_SEPARATOR)
        owners[owner][entry] = tensor.to(device, copy=True)
    for key, value in state.values.items():
        owner, entry = key.split(_SEPARATOR)
        owners[owner][entry] = _from_json(value)


def _owners(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    for number, group in enumerate(optimiser.param_groups):
        yield f"{_GROUP}{number}", group
    for name, parameter in parameters.items():
        yield name, optimiser.state[parameter]


def _to_json(value: object, what: str) -> Json:
    """Return a form that JSON keeps exactly: it has neither tuples nor infinite numbers."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_to_json(part, what) for part in value]}
    raise TypeError(f"{what} as {type(value)}")


def _from_json(value: Json) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "float":
        return float.fromhex(content)
    parts = [_from_json(part) for part in content]
    return tuple(parts) if kind == "tuple" else parts
