"""docs/parameters.md from the typed model of params.yaml and from presets/.

Run `python -m docs.writers.parameters`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stages.contracts.params import Params
from stages.contracts.params.idle import NEUTRAL

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs/parameters.md"
SMALL: Final = "nano-flux"
_LONGEST: Final = 40
_PLAIN: Final = {str: "text", int: "whole number", float: "number", bool: "true or false"}

_HEAD: Final = """\
# Parameters

Written by `python -m docs.writers.parameters`; do not edit. The source is
`stages/contracts/params/`, with the files of `presets/`.

`params.yaml` has every key of this page: there are no defaults in code, and a key that is missing
or unknown is refused with its line. Values that do not go together are refused too, all in one
message. A key marked ¹ works only with another setting, which the message names; without it the key
must have the value that the presets have. Devices, threads and folders of one machine are
environment variables, not parameters: [hardware](hardware.md),
[several machines](several-machines.md).

The columns with values are `presets/nano-flux.yaml`, which is also the `params.yaml` of the default
run, and the {count} presets for FLUX.1 and its like ({names}).
"""


def page() -> str:
    """Return the page."""
    presets = _presets()
    names = sorted(presets.keys() - {SMALL})
    parts = [_HEAD.format(count=len(names), names=", ".join(f"`{name}`" for name in names))]
    for section, field in Params.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        parts.append(f"## {section}\n\n{_first_line(model)}\n\n{_table(section, model, presets)}")
    parts += [
        f"### {key}\n\n{_first_line(model)}\n\n{_entries(model)}" for key, model in _nested(Params)
    ]
    return "\n".join(parts)


def type_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return a field's type and range in words: `whole number, 1 to 512`."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(inside[0], [*_flat(inside[1:]), *metadata])
    if origin in (Union, UnionType):
        parts = [type_words(part) for part in inside if part is not NoneType]
        return " or ".join([*parts, *(["null"] if NoneType in inside else [])])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin is list:
        return f"list{_length(metadata)} of: {type_words(*inside)}"
    if origin is dict:
        return f"map from {type_words(inside[0])} to {type_words(inside[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"`{{{', '.join(annotation.model_fields)}}}`"
    return _PLAIN[annotation] + _range(metadata)


def _presets() -> dict[str, dict[str, dict[str, Any]]]:
    files = sorted((ROOT / "presets").glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}


def _table(section: str, model: type[BaseModel], presets: dict[str, dict[str, Any]]) -> str:
    rows = ["| key | type and range | nano | FLUX.1 | what |", "|---|---|---|---|---|"]
    for key, field in model.model_fields.items():
        mark = " ¹" if f"{section}.{key}" in NEUTRAL else ""
        values = {name: preset[section][key] for name, preset in presets.items()}
        small = shown(values.pop(SMALL))
        rows.append(
            f"| `{key}`{mark} | {_cell(type_words(field.annotation, field.metadata))} "
            f"| {small} | {_others(values)} | {_cell(field.description or '')} |"
        )
    return "\n".join(rows) + "\n"


def _entries(model: type[BaseModel]) -> str:
    rows = ["| key | type and range | what |", "|---|---|---|"]
    for key, field in model.model_fields.items():
        words = _cell(type_words(field.annotation, field.metadata))
        rows.append(f"| `{key}` | {words} | {_cell(field.description or '')} |")
    return "\n".join(rows) + "\n"


def _others(values: dict[str, Any]) -> str:
    """Return the value that most presets have, then those that differ, each with its presets."""
    holders: dict[str, list[str]] = {}
    for name, value in values.items():
        holders.setdefault(shown(value), []).append(name)
    usual, *others = sorted(holders, key=lambda text: (-len(holders[text]), text))
    return "; ".join([usual, *(f"{text} in {', '.join(holders[text])}" for text in others)])


def shown(value: Any) -> str:
    """Return a value as params.yaml writes it; long ones by their length."""
    if isinstance(value, bool) or value is None or isinstance(value, int | float):
        return json.dumps(value)
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONGEST:
        return f"`{_cell(text if isinstance(value, list | dict) or not value else value)}`"
    return f"{len(value)} entries" if isinstance(value, list | dict) else f"`{value[:12]}…`"


def _nested(model: type[BaseModel], section: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the models of single entries with the keys that they stand under."""
    for key, field in model.model_fields.items():
        for found in _models(field.annotation):
            if section:
                yield f"{section}.{key}", found
            yield from _nested(found, f"{section}.{key}" if section else key)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _flat(metadata: Sequence[Any]) -> list[Any]:
    parts = [one.metadata if isinstance(one, FieldInfo) else [one] for one in metadata]
    return [one for part in parts for one in part]


def _length(metadata: Sequence[Any]) -> str:
    least = [one.min_length for one in metadata if isinstance(one, MinLen)]
    most = [one.max_length for one in metadata if isinstance(one, MaxLen)]
    if least and most:
        return f" ({least[0]})" if least == most else f" ({least[0]} to {most[0]})"
    return f" (at least {least[0]})" if least else ""


def _range(metadata: Sequence[Any]) -> str:
    low = [_limit(one.ge) for one in metadata if isinstance(one, Ge)]
    high = [_limit(one.le) for one in metadata if isinstance(one, Le)]
    above = [f"above {_limit(one.gt)}" for one in metadata if isinstance(one, Gt)]
    below = [f"below {_limit(one.lt)}" for one in metadata if isinstance(one, Lt)]
    steps = [one.multiple_of for one in metadata if isinstance(one, MultipleOf)]
    patterns = [one.pattern for one in metadata if getattr(one, "pattern", None)]
    starts = [*(f"from {one} on" for one in low), *above]
    ends = [*(f"up to {one}" for one in high), *below]
    text = f", {low[0]} to {high[0]}" if low and high else "".join(f", {x}" for x in starts + ends)
    not_empty = any(isinstance(one, MinLen) for one in metadata)
    text += "".join(f", a multiple of {step}" for step in steps)
    text += ", not empty" if not_empty else ""
    return text + "".join(f" like `{pattern}`" for pattern in patterns)


def _limit(number: Any) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.parse_args().out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
