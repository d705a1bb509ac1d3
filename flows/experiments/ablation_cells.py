"""The cells of an ablation: params.yaml with the grid's base, and one changed value at a time.

One factor at a time and not the full product: the demo's grid is 8 trainings in place of 48, and
a row differs from the first one in one thing that the row names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.param_changes import (
    Scalar,
    check_changes,
    describe,
    follow_problems,
    name_problems,
    value_of,
    with_changes,
)
from stages.contracts.errors import BlocklensError, Problem
from stages.contracts.params import Params, load_params

DEFAULT: Final = "default"
"""Name of the cell in which nothing is changed."""
_FINGERPRINT_DIGITS: Final = 8


class GridError(BlocklensError, ValueError):
    """A grid file with unknown params, values out of range or a wrong form."""


class Grid(BaseModel):
    """The content of a grid file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base: dict[str, Scalar] = Field(
        default_factory=dict, description="Param -> value that all cells have in common."
    )
    factors: Annotated[dict[str, Annotated[list[Scalar], Field(min_length=1)]], Field(min_length=1)]
    follow: dict[str, str] = Field(description="Param -> factor whose changed value it takes.")


@dataclass(frozen=True)
class Cell:
    """One training: which param has which value, what changes with it, and all params as checked.

    `name` ends in a fingerprint of all params, so that an experiment of that name at the same
    commit is this very training.
    """

    factor: str
    value: Scalar
    changes: dict[str, Scalar]
    base: dict[str, Scalar]
    params: dict[str, Any]

    @property
    def settings(self) -> dict[str, Scalar]:
        """Return all values that differ from params.yaml, or may."""
        return {**self.base, **self.changes}

    @property
    def name(self) -> str:
        """Return the name of the cell's experiment, such as rank-4-0f3a77c1."""
        label = f"{self.factor.rpartition('.')[2]}-{self.value}" if self.changes else DEFAULT
        text = json.dumps(self.params, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_DIGITS]
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', label).strip('-.')}-{fingerprint}"


def load_cells(grid_path: Path, params_path: Path, sections: Collection[str]) -> list[Cell]:
    """Return the cells of a grid, first that of `params_path` with nothing but the grid's base.

    A value that this one has already makes no cell of its own. `sections` are those that
    decide the training: another param would give equal rows.

    Raises:
        ParamsError: params.yaml itself is not valid.
        GridError: the grid is not; every problem is named.
    """
    load_params(params_path)
    document = yaml.safe_load(params_path.read_text(encoding="utf-8"))
    content = _read(grid_path)
    problems = _form_problems(grid_path, content)
    base = {k: v for k, v in _mapping(content.get("base")).items() if isinstance(v, Scalar)}
    factors = _well_formed(content.get("factors"))
    follow = {k: v for k, v in _mapping(content.get("follow")).items() if isinstance(v, str)}
    names = [*base, *factors, *follow]
    problems += name_problems(str(grid_path), names, sections, "a training")
    problems += follow_problems(str(grid_path), factors, follow)
    base = {name: value for name, value in base.items() if describe(name) is not None}
    factor, value = next(iter(base.items()), ("base", None))
    based = check_changes(f"{grid_path}: {factor} = {value!r}", document, base)
    cells = []
    if isinstance(based, Params):
        document = with_changes(document, base)
        cells.append(Cell("", None, {}, base, based.model_dump(mode="json")))
    else:
        problems += based
    for factor, values in factors.items():
        if describe(factor) is None:
            continue
        before = value_of(document, factor)
        if len({repr(value) for value in values}) < len(values):
            where = f"{grid_path}: factors.{factor}"
            problems.append(Problem(where, f"a value stands twice in {values}", "Remove one"))
        for value in values:
            if type(value) is type(before) and value == before:
                continue
            followers = {name: value for name, leader in follow.items() if leader == factor}
            changes = {factor: value, **{n: v for n, v in followers.items() if describe(n)}}
            checked = check_changes(f"{grid_path}: {factor} = {value!r}", document, changes)
            if isinstance(checked, Params):
                values_of_all = checked.model_dump(mode="json")
                cells.append(Cell(factor, value, changes, base, values_of_all))
            else:
                problems += checked
    if problems:
        raise GridError(f"{grid_path} is not valid", problems)
    return cells


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GridError(f"{path} does not exist; flows/ablation.yaml is an example") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GridError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(content, dict):
        raise GridError(f"{path} is not a mapping with the keys base, factors and follow")
    return content


def _form_problems(path: Path, content: Mapping[str, Any]) -> list[Problem]:
    try:
        Grid.model_validate(content)
    except ValidationError as error:
        # A union of scalars reports one error per type: one is enough.
        found: dict[tuple[int | str, ...], str] = {}
        for detail in error.errors():
            depth = 3 if detail["loc"][0] == "factors" else 2
            found.setdefault(detail["loc"][:depth], detail["msg"])
        return [
            Problem(f"{path}: {'.'.join(map(str, keys))}", message, _form(keys))
            for keys, message in found.items()
        ]
    return []


def _form(keys: Sequence[int | str]) -> str:
    if keys[0] == "factors":
        return "Write SECTION.KEY: [VALUE, ...] with numbers, words, true, false or null"
    if keys[0] == "follow":
        return "Write SECTION.KEY: SECTION.KEY, or follow: {}"
    if keys[0] == "base":
        return "Write SECTION.KEY: VALUE, or base: {}"
    return "Known keys: base, factors, follow"


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    return {key: each for key, each in value.items() if isinstance(key, str)}


def _well_formed(value: object) -> dict[str, list[Scalar]]:
    """Return the factors whose form is right, so that their content is checked all the same."""
    return {
        name: values
        for name, values in _mapping(value).items()
        if isinstance(values, list) and all(isinstance(each, Scalar) for each in values)
    }
