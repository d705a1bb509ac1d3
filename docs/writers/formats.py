"""docs/formats.md: every output of every stage, from dvc.yaml and the tables' own schemas.

Run `python -m docs.writers.formats`. The words stand in formats.yaml beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import pandera.pandas as pa
import yaml

from stages.contracts import tables
from stages.contracts.metrics import BETTER

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs/formats.md"
WORDS: Final = Path(__file__).with_suffix(".yaml")
_DATA: Final = "data/"
_LONGEST_PATTERN: Final = 60
_TYPES: Final = {"int64": "whole number", "float64": "number", "bool": "True, False"}

_HEAD: Final = """\
# Files that are read and written

Written by `python -m docs.writers.formats` from `dvc.yaml`, `stages/contracts/tables.py`,
`data/*/metrics.json` and `docs/writers/formats.yaml`; do not edit.

Read: pictures ([dataset](dataset.md#what-is-read)), captions ([captions](captioners.md)), base
weights ([weights](weights.md)), LoRA files ([adapters](adapters.md)), `params.yaml`
([parameters](parameters.md)).

Written: each stage writes into `data/<stage>/` alone and replaces it as a whole.

- Tables are UTF-8 CSV: comma, one header line, sorted by their key columns, floats as `%.9g`, an
  empty cell where a number was not measured. A table with other columns or values out of range is
  refused by the stage that reads it.
- JSON has sorted keys, safetensors files have sorted headers, and nothing holds a time or the name
  of a host: the same inputs give the same bytes.
- MSE is over RGB values 0 to 255, in float64, mean over pixels and channels, at most 65025.
  Recovery, direction and shares are parts of 1, not per cent.
- A block is `double.<n>`, `single.<n>` or `base`. A prompt is `develop-<n>`, `held-out-<n>`,
  `without-trigger-<n>` or `attribute-<n>`, counted from 0 in the order of `params.yaml`. A variant
  is `none`, `full`, `repeat`, `only:<block>`, `without:<block>`, `random:<block>`, `strength:<s>`,
  `only-group:<name>`, `without-group:<name>` or `subset:<name>`
  (`stages/sampling/variants.py`); in a file's name `:` is `-`.
- Low and high ends are those of a bootstrap interval ([method](method.md#intervals)).

`metrics.json` and small tables are in git, the rest in DVC's cache ([sharing](sharing.md)).
"""


def page() -> str:
    """Return the page."""
    words: dict[str, Any] = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    schemas = all_tables()
    parts = [_HEAD]
    for stage, outputs in all_outputs().items():
        rows = [f"| `{name}` | {words['files'][name]} |" for name in outputs]
        head = [f"## {stage}", "", "| file in `data/` | what |", "|---|---|"]
        parts.append("\n".join([*head, *rows]))
        for name, table in schemas.items():
            if name.split("/")[0] == stage:
                parts.append(_columns(table, words["columns"][name]))
        if keys := all_metrics().get(stage):
            parts.append(_metrics(stage, keys, words["metrics"]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def all_outputs() -> dict[str, list[str]]:
    """Return the outputs of each stage, below data/, in the order of dvc.yaml."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {
        stage: [
            (entry if isinstance(entry, str) else next(iter(entry))).removeprefix(_DATA)
            for kind in ("outs", "metrics", "plots")
            for entry in content.get(kind, [])
        ]
        for stage, content in stages.items()
    }


def all_tables() -> dict[str, tables.Table]:
    """Return the tables by name, such as `train/history.csv`, in the order of the module."""
    found = [one for one in vars(tables).values() if isinstance(one, tables.Table)]
    return {table.name: table for table in found}


def all_metrics() -> dict[str, list[str]]:
    """Return the keys of each stage's metrics.json: the committed ones, and those with a way."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "data").glob("*/metrics.json")):
        found[path.parent.name] = set(json.loads(path.read_text(encoding="utf-8")))
    for name in BETTER:
        stage, key = name.split(".")
        found.setdefault(stage, set()).add(key)
    return {stage: sorted(keys) for stage, keys in found.items()}


def column_words(column: pa.Column) -> str:
    """Return a column's type and range in words."""
    text = _TYPES.get(str(column.dtype), "text")
    for check in column.checks:
        limits = check.statistics or {}
        if "pattern" in limits:
            pattern = str(getattr(limits["pattern"], "pattern", limits["pattern"]))
            if len(pattern) <= _LONGEST_PATTERN:
                inner = pattern.removeprefix("^(?:").removesuffix(")$")
                text += f" like `{inner}`"
        elif {"min_value", "max_value"} <= limits.keys():
            text += f", {limits['min_value']:g} to {limits['max_value']:g}"
        elif "min_value" in limits:
            text += f", from {limits['min_value']:g}"
        elif "max_value" in limits:
            text += f", up to {limits['max_value']:g}"
    return _cell(text + (", or empty" if column.nullable else ""))


def _columns(table: tables.Table, words: dict[str, str]) -> str:
    rows = [
        f"| `{name}`{mark} | {column_words(column)} | {_cell(words[name])} |"
        for name, column in table.schema.columns.items()
        for mark in (" (key)" if name in table.keys else "",)
    ]
    head = [f"### {table.name}", "", "| column | type and range | what |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _metrics(stage: str, keys: list[str], words: dict[str, str]) -> str:
    rows = [
        f"| `{key}` | {BETTER.get(f'{stage}.{key}', '')} | {words[f'{stage}.{key}']} |"
        for key in keys
    ]
    head = [f"### {stage}/metrics.json", "", "| key | better | what |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.parse_args().out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
