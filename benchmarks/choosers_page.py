"""The page of benchmarks/choosers.py: tables from what it measured, words that hold for any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

BY_HAND: Final = "isolate-mse"
"""The chooser that is what people do: the one that the default is compared with."""
_INTRODUCTION: Final = """\
# Choosing the blocks of a slim file

Stage `slim` puts the blocks in an order, takes the smallest number of them whose pictures of the
development prompts recover `slim.recovery` of the LoRA's effect at the lower end of their interval,
and tests that set on prompts and seeds that had no say (`held-out`). The order is the chooser's
(`slim.chooser`; what each does: `stages/slimming/choosers.py`). *per byte* divides a block's score
by its bytes (`slim.per_byte`). *refitted* gives the kept blocks strengths that make up for the
others (`slim.refit_ridge`); it changes no byte count.

This page is written by

    python -m benchmarks.choosers --out FOLDER --page docs/choosers.md

on three LoRAs of nano-flux: the demo's robot, a style, and another object
(`benchmarks/subjects.py`). **bytes** are those of the chosen set over the whole file's;
**isolate-mse** is the ranking by the MSE of pictures with one block alone, which is what people do
by hand.
"""


def write_page(page: Path, folders: Sequence[Path]) -> None:
    """Write the page from the tables in the LoRAs' folders, each named like its LoRA."""
    tables = {folder.name: _read(folder) for folder in folders}
    parts = [_INTRODUCTION, _verdict(tables)]
    for name, found in tables.items():
        parts += [f"## {name}\n", _table(pd.DataFrame(found["rows"]))]
    parts += [_curves(tables), _sigmas(tables)]
    page.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
    return found


def _verdict(tables: dict[str, dict[str, Any]]) -> str:
    """Return the default chooser against isolate-mse, one line per LoRA."""
    rows = []
    for name, found in tables.items():
        by_name = {row["chooser"]: row for row in found["rows"]}
        default, hand = found["rows"][0], by_name.get(BY_HAND)
        if hand is None:  # a run that was stopped before
            continue
        rows.append(
            {
                "LoRA": name,
                "bytes, default": default["bytes"],
                "bytes, isolate-mse": hand["bytes"],
                "fewer": 1.0 - default["bytes"] / hand["bytes"],
                "held-out, default": default["held_out"],
                "held-out, isolate-mse": hand["held_out"],
            }
        )
    return f"## The default against single-block MSE\n\n{_table(pd.DataFrame(rows))}"


def _curves(tables: dict[str, dict[str, Any]]) -> str:
    """Return the held-out recovery against bytes, of every set that has pictures."""
    lines = [
        "## Recovery against bytes\n",
        "Held-out recovery (development in brackets) of every set that was drawn, by its bytes.\n",
    ]
    for name, found in tables.items():
        lines.append(f"**{name}**\n")
        for chooser, rows in pd.DataFrame(found["curve"]).groupby("chooser", sort=False):
            points = [
                f"{row.bytes:.0%}: {row.held_out:.3f} ({row.develop:.3f})"
                for row in rows.sort_values("bytes").itertuples()
            ]
            lines.append(f"- {chooser}: {', '.join(points)}")
        lines.append("")
    return "\n".join(lines)


def _sigmas(tables: dict[str, dict[str, Any]]) -> str:
    """Return how well each noise level's guesses predict pictures."""
    text = (
        "## Which noise levels predict pictures\n\n"
        "Guess: what `lens/interaction.py` expects to be lost of the velocities; seen: 1 - recovery"
        " of the development pictures, for every set drawn above. `rank_correlation` is Spearman's,"
        " over sets and pictures.\n"
    )
    for name, found in tables.items():
        text += f"\n**{name}**\n\n{_table(pd.DataFrame(found['sigmas']))}"
    return text


def _table(frame: pd.DataFrame) -> str:
    """Return a table in Markdown; numbers between 0 and 1 with three digits."""
    rows = [
        [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row]
        for row in frame.itertuples(index=False)
    ]
    head = [" | ".join(map(str, frame.columns)), " | ".join("---" for _ in frame.columns)]
    return "\n".join(f"| {line} |" for line in [*head, *map(" | ".join, rows)]) + "\n"
