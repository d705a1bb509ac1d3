"""Changed values of params.yaml, checked before anything runs with them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from stages.contracts.errors import Problem
from stages.contracts.params import Params

Scalar = bool | int | float | str | None


def name_problems(
    source: str, names: Sequence[str], sections: Collection[str], decided: str
) -> list[Problem]:
    """Return what is wrong with names; `sections` are those that decide what is `decided`."""
    problems = []
    known = [f"{section}.{key}" for section in sections for key in _keys(section)]
    for name in names:
        if name in known:
            continue
        if describe(name) is not None:
            what, remedy = f"decides nothing of {decided}", f"Sections that do: {sorted(sections)}"
        else:
            close = get_close_matches(name, known, n=1)
            what = "no such param"
            remedy = f"Did you mean {close[0]!r}?" if close else "Write SECTION.KEY of params.yaml"
        problems.append(Problem(f"{source}: {name}", what, remedy))
    return problems


def follow_problems(
    source: str, factors: Collection[str], follow: Mapping[str, str]
) -> list[Problem]:
    """Return what is wrong with params that take another one's value."""
    problems = []
    for name, leader in follow.items():
        where = f"{source}: follow.{name}"
        if leader not in factors:
            problems.append(Problem(where, f"{leader} is no factor", f"One of {list(factors)}"))
        if name in factors:
            problems.append(Problem(where, "it is a factor itself", "Remove one of the two"))
    return problems


def _model(section: str) -> type[BaseModel] | None:
    field = Params.model_fields.get(section)
    model = field.annotation if field else None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _keys(section: str) -> list[str]:
    model = _model(section)
    return list(model.model_fields) if model else []


def describe(name: str) -> str | None:
    """Return the description of a param, or None where there is no such param."""
    section, _, key = name.partition(".")
    model = _model(section)
    field = model.model_fields.get(key) if model else None
    return (field.description or name) if field else None


def value_of(document: Mapping[str, Any], name: str) -> object:
    """Return the value of a param that exists."""
    section, _, key = name.partition(".")
    value: object = document[section][key]
    return value


def check_changes(
    where: str, document: Mapping[str, Any], changes: Mapping[str, Any]
) -> Params | list[Problem]:
    """Return the params with the changes, or what is wrong with them.

    `where` begins the messages; it names the first change.
    """
    for value in changes.values():
        if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
            # dvc exp run -S writes it so (YAML 1.2); PyYAML reads YAML 1.1, where it is a string.
            what = f"DVC would write {value!r} into params.yaml, which YAML 1.1 takes for a word"
            return [Problem(where, what, "Give it a second digit, such as 1.1e-05")]
    factor = next(iter(changes), "base")
    try:
        return Params.model_validate(with_changes(document, changes))
    except ValidationError as error:
        messages: dict[str, str] = {}
        for detail in error.errors():
            name = ".".join(map(str, detail["loc"][:2]))
            prefix = f"{name}: " if name in changes and name != factor else ""
            message = prefix + detail["msg"].removeprefix("Value error, ")
            messages.setdefault(name, message)
        return [
            Problem(where, message, describe(name) or "Change the value, or params.yaml")
            for name, message in messages.items()
        ]


def with_changes(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the content of params.yaml with other values."""
    changed = copy.deepcopy(dict(document))
    for name, value in changes.items():
        section, _, key = name.partition(".")
        changed[section][key] = value
    return changed
