"""The cells of a sweep: every combination of the values that a grid gives to some params."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from flows.param_changes import Scalar, check_changes, follow_problems, name_problems
from stages.contracts.errors import BlocklensError, Problem
from stages.contracts.params import Params, load_params

LARGEST: Final = 1000
"""More combinations than this are a mistake, and `dvc exp show` would not list them in time."""
_LABEL_CHARACTERS: Final = 60
_FINGERPRINT_DIGITS: Final = 8
_SOURCE: Final = "grid"


class SweepError(BlocklensError, ValueError):
    """A sweep over unknown params, or over values that params.yaml may not have."""


@dataclass(frozen=True)
class Combination:
    """One experiment: its name, the params that it changes, and all params as checked.

    The name ends in a fingerprint of all params and the last stage, so that an experiment of that
    name at the same commit is this very one.
    """

    name: str
    changes: dict[str, Any]
    params: dict[str, Any]


def combinations(
    grid: Mapping[str, Sequence[Any]],
    follow: Mapping[str, str],
    params_path: Path,
    sections: Collection[str],
    target: str,
) -> list[Combination]:
    """Return every combination of the grid's values, the last param's changing fastest.

    Args:
        grid: param -> values: numbers, words, true, false, null, or lists of those.
        follow: param -> param of the grid whose value it takes.
        params_path: params.yaml, whose other values all combinations have.
        sections: those that decide something of stage `target` or of a stage before it.
        target: the last stage that is run.

    Raises:
        ParamsError: params.yaml itself is not valid.
        SweepError: the grid is not; every problem is named.
    """
    load_params(params_path)
    document = yaml.safe_load(params_path.read_text(encoding="utf-8"))
    problems = name_problems(_SOURCE, [*grid, *follow], sections, f"stage {target}")
    problems += [*_value_problems(grid), *follow_problems(_SOURCE, grid, follow)]
    if problems:
        raise SweepError("the sweep's grid is not valid", problems)
    found = []
    wrong: dict[str, Problem] = {}  # a value out of range is so in every combination: said once
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, values, strict=True))
        changes |= {name: changes[leader] for name, leader in follow.items()}
        checked = check_changes(f"{_SOURCE}: {_said(changes)}", document, changes)
        if isinstance(checked, Params):
            params = checked.model_dump(mode="json")
            found.append(Combination(_name(grid, values, params, target), changes, params))
        else:
            for problem in checked:
                wrong.setdefault(problem.what, problem)
    if wrong:
        raise SweepError("params.yaml is not valid with the sweep's values", [*wrong.values()])
    return found


def _value_problems(grid: Mapping[str, Sequence[Any]]) -> list[Problem]:
    remedy = "Give it a list of numbers, words, true, false, null, or lists of those"
    if not grid:
        return [Problem(_SOURCE, "no params", "Name one with its values, as train.rank: [4, 8]")]
    problems = []
    for name, values in grid.items():
        where = f"{_SOURCE}: {name}"
        if not isinstance(values, list) or not values or not all(map(_is_value, values)):
            problems.append(Problem(where, f"got {values!r}", remedy))
        elif len({json.dumps(value) for value in values}) < len(values):
            problems.append(Problem(where, f"a value stands twice in {values}", "Remove one"))
    if not problems:
        count = math.prod(map(len, grid.values()))
        if count > LARGEST:
            what = f"{count} combinations, at most {LARGEST} are run"
            problems.append(Problem(_SOURCE, what, f"Fewer values, of {_counted(grid)}"))
    return problems


def _counted(grid: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{name} ({len(values)})" for name, values in grid.items())


def _is_value(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, Scalar) for item in items)


def _said(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in changes.items())


def _name(
    grid: Mapping[str, Any], values: Sequence[Any], params: Mapping[str, Any], target: str
) -> str:
    """Return a name that git and DVC take, such as rank-4-learning-rate-0.001-0f3a77c1."""
    words = [f"{name.partition('.')[2]}-{v}" for name, v in zip(grid, values, strict=True)]
    label = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words))[:_LABEL_CHARACTERS].strip("-.")
    text = json.dumps({"params": params, "target": target}, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_DIGITS]
    return f"{re.sub(r'[.]{2,}', '.', label)}-{fingerprint}"
