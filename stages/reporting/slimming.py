"""The slim LoRA: how small it gets, what it loses, and how both are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
from markupsafe import Markup

from stages.contracts.params import SlimParams
from stages.reporting.charts import Axis, Chart, Dots, Label, Line, Rule, draw_charts
from stages.reporting.evidence import Evidence, Metrics
from stages.reporting.pictures import full_pictures
from stages.reporting.words import count, percent

SHOWN: Final = ("none", "full", "slim")
"""Pictures of each held-out pair, by file name."""

ROOM_CHARACTERS: Final = 3_000_000
"""Data URIs of the held-out pictures; see BUDGET_CHARACTERS of the gallery."""


@dataclass(frozen=True)
class HeldOut:
    """Pictures of one held-out prompt and seed as data URIs, by name as in SHOWN."""

    key: str
    words: str
    pictures: dict[str, str]


@dataclass(frozen=True)
class Slimming:
    """What the page says about the slim adapter."""

    metrics: Metrics
    threshold: float
    chooser: str
    kept: Sequence[str]
    blocks_present: int
    curve: Markup
    held_out: Sequence[HeldOut]
    passed: bool
    whole: bool


def tell_slimming(
    evidence: Evidence, params: SlimParams, prompts: Sequence[str], longest_px: int
) -> Slimming:
    """Return the curve, the chosen set and the held-out pictures; `prompts` are the held-out."""
    metrics = evidence.metrics["slim"]
    kept = [str(result.block) for result in evidence.blocks if result.kept]
    return Slimming(
        metrics=metrics,
        threshold=params.recovery,
        chooser=params.chooser,
        kept=kept,
        blocks_present=len(evidence.present),
        curve=_curve(evidence.curve, metrics, params.recovery),
        held_out=_held_out(evidence.folders.slimmed / "images", prompts, longest_px),
        passed=metrics["recovery"] >= params.recovery,
        whole=len(kept) == len(evidence.present),
    )


def _curve(curve: pd.DataFrame, metrics: Metrics, threshold: float) -> Markup:
    rows = curve.sort_values("blocks")
    sizes = rows["bytes"] / max(1, int(rows["bytes"].max()))
    line = list(zip(sizes, rows["predicted"], strict=True))
    measured = rows[rows["recovery"].notna()]
    points = list(zip(sizes[measured.index], measured["recovery"], strict=True))
    titles = [
        f"{count(int(blocks), 'block')}, {percent(size, 0)} of the bytes: recovery {percent(value)}"
        for blocks, size, value in zip(
            measured["blocks"], sizes[measured.index], measured["recovery"], strict=True
        )
    ]
    lows = [None if pd.isna(low) else float(low) for low in measured["recovery_low"]]
    chosen = (metrics["bytes_ratio"], metrics["recovery"])
    chosen_title = f"slim LoRA on held-out prompts: recovery {percent(metrics['recovery'])}"
    heights = [*(y for _, y in line), *(y for _, y in points), *(low or 0.0 for low in lows)]
    low = max(-1.0, min(0.0, *heights, metrics["recovery_low"]))
    return draw_charts(
        Chart(
            x=Axis(0.0, 1.02, "size of the file, % of the full LoRA", percent=True),
            y=Axis(low, 1.04, "recovery, %", percent=True),
            summary=f"Recovery against size. At {percent(chosen[0], 0)} of it, {chosen_title}",
            lines=[Line([(x, min(1.0, max(low, y))) for x, y in line], "accent")],
            dots=[
                Dots([(x, max(low, y)) for x, y in points], titles, "plain", lows),
                Dots([chosen], [chosen_title], "chosen", [metrics["recovery_low"]]),
            ],
            rules=[
                Rule(
                    threshold, "horizontal", f"threshold {percent(threshold, 0)}", "dashed", "start"
                ),
                Rule(chosen[0], "vertical", f"chosen: {metrics['blocks_kept']:.0f} blocks", "thin"),
            ],
            labels=[Label((chosen[0], chosen[1] - 0.06), "slim, held-out")],
        )
    )


def _held_out(folder: Path, prompts: Sequence[str], longest_px: int) -> list[HeldOut]:
    """Return the pairs in images/held-out-<number>-<seed>/, in the order of params.yaml."""
    places = sorted(folder.glob("held-out-*-*"), key=_pair_order)
    files = [place / f"{name}.png" for place in places for name in SHOWN]
    pictures = iter(full_pictures(files, longest_px, ROOM_CHARACTERS))
    pairs = []
    for place in places:
        number, seed = _pair_order(place)
        shown = {name: next(pictures) for name in SHOWN}
        pairs.append(HeldOut(place.name, f"“{prompts[number]}”, seed {seed}", shown))
    return pairs


def _pair_order(place: Path) -> tuple[int, int]:
    _, number, seed = place.name.rsplit("-", 2)
    return int(number), int(seed)
