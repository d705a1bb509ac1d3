"""The ranking: one row per block, and whether shares and pictures agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from stages.reporting.certainty import Places, possible_places
from stages.reporting.charts import Axis, Chart, Dots, Label, draw_charts
from stages.reporting.evidence import BlockResult, Evidence
from stages.reporting.words import percent

_LABELLED: Final = 6
_MARGIN: Final = 0.06


@dataclass(frozen=True)
class Row:
    """A block in the ranking; bar ends are percentages of the column's width.

    `places` are the ranks that the intervals of the shares allow; `alone` is the interval of the
    rank by recovery alone, empty where it was not measured.
    """

    rank: int
    places: Places
    alone: str
    result: BlockResult
    zero: float
    start: float
    end: float
    low: float
    high: float
    cumulative: float


@dataclass(frozen=True)
class Ranking:
    """Rows by share, the blocks that are not present, and the scatter of two measures, if any."""

    rows: Sequence[Row]
    absent: Sequence[str]
    scatter: Markup | None
    tau: float | None


def rank_blocks(evidence: Evidence) -> Ranking:
    """Return the ranking of the blocks that are present."""
    ranked = evidence.ranked
    low = min(0.0, *(result.numbers["share_low"] for result in ranked))
    high = max(0.0, *(result.numbers["share_high"] for result in ranked))
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100.0 * (value - low) / width, 2)

    rows, cumulative = [], 0.0
    for rank, (result, places) in enumerate(
        zip(ranked, possible_places(ranked), strict=True), start=1
    ):
        share = result.numbers["share"]
        cumulative += share
        rows.append(
            Row(
                rank=rank,
                places=places,
                alone=_alone(result),
                result=result,
                zero=place(0.0),
                start=place(min(0.0, share)),
                end=place(max(0.0, share)),
                low=place(result.numbers["share_low"]),
                high=place(result.numbers["share_high"]),
                cumulative=cumulative,
            )
        )
    absent = [str(result.block) for result in evidence.blocks if not result.present]
    return Ranking(rows, absent, _scatter(ranked), evidence.metrics["evaluate"].get("rank_tau"))


def _alone(result: BlockResult) -> str:
    """Return `4 to 11`: the interval of the rank by recovery alone, in whole ranks."""
    low, high = result.number("only_rank_low"), result.number("only_rank_high")
    if low is None or high is None:
        return ""
    return str(Places(math.floor(low), math.ceil(high)))


def _scatter(ranked: Sequence[BlockResult]) -> Markup | None:
    """Return share against recovery of the block alone; None without `only` pictures."""
    points = [
        (result.numbers["share"], result.numbers["only_recovery"])
        for result in ranked
        if "only_recovery" in result.numbers
    ]
    if len(points) < len(ranked) or len(points) < 2:
        return None
    names = [str(result.block) for result in ranked]
    titles = [
        f"{name}: share {percent(x)}, alone it recovers {percent(y)}"
        for name, (x, y) in zip(names, points, strict=True)
    ]
    return draw_charts(
        Chart(
            x=_padded([x for x, _ in points], "share of the effect, %"),
            y=_padded([y for _, y in points], "recovery by the block alone, %"),
            summary=f"Share against recovery alone for {len(points)} blocks; {titles[0]}",
            dots=[Dots(points, titles, "accent")],
            labels=[Label(points[i], names[i]) for i in range(min(_LABELLED, len(points)))],
        )
    )


def _padded(values: Sequence[float], title: str) -> Axis:
    low, high = min(0.0, *values), max(0.0, *values)
    pad = _MARGIN * ((high - low) or 1.0)
    return Axis(low - pad, high + 2.0 * pad, title, percent=True)
