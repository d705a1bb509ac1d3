"""The review as one web page that needs no network: both maps, their difference, both pictures.

It has the report's style sheet, fonts and block map; its own words and templates are here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup
from PIL import Image

from flows.review.comment import Review
from flows.review.judgement import Judged
from flows.review.pictures import Shown
from flows.review.revisions import SHARES, Value, read_file
from stages.contracts.blocks import BASE, BlockId, numbered_blocks
from stages.reporting.block_map import MapStyle, draw_block_map, wide_columns
from stages.reporting.evidence import BlockResult
from stages.reporting.palette import DARK, LIGHT
from stages.reporting.pictures import FULL_PX, picture_uri
from stages.reporting.templating import FONTS, asset_text, environment, font_uri, script_hash
from stages.reporting.words import count, interval, percent

_NARROW_COLUMNS: Final = 8
_MOVED_SHOWN: Final = 12
_PARAMS_TOLD: Final = 2
_DASH: Final = "–"


@dataclass(frozen=True)
class Blocks:
    """The blocks of one revision, as its files have them, and what its intervals cover."""

    results: Sequence[BlockResult]
    confidence: float


@dataclass(frozen=True)
class Move:
    """A block's share and rank in both revisions; the rank is empty where it is not present."""

    block: str
    before: str
    after: str
    before_rank: str
    after_rank: str
    step: int
    overlap: bool


@dataclass(frozen=True)
class Slide:
    """The same picture of two revisions as data URIs."""

    name: str
    before: str
    after: str
    equal: bool


def read_blocks(root: Path, revision: str | None) -> Blocks | None:
    """Return a revision's blocks with their shares; None where none were measured."""
    shares = read_file(root, revision, SHARES)
    if shares is None:
        return None
    rows = pd.read_csv(io.BytesIO(shares)).set_index("block")
    measured = {BlockId.parse(str(name)): row for name, row in rows.iterrows()}
    split, slim = (_read_metrics(root, revision, stage) for stage in ("split", "slim"))
    every = set(measured)
    if "double_blocks" in split:
        every |= {*numbered_blocks(split["double_blocks"], split["single_blocks"]), BASE}
    kept = _kept(read_file(root, revision, "data/slim/curve.csv"), slim.get("blocks_kept"))
    params = yaml.safe_load(read_file(root, revision, "params.yaml") or b"{}")
    results = []
    for block in sorted(every):
        numbers = {}
        if (row := measured.get(block)) is not None:
            names = {"share": "share", "share_low": "low", "share_high": "high"}
            numbers = {name: float(row[column]) for name, column in names.items()}
        results.append(BlockResult(block, bool(numbers), str(block) in kept, numbers))
    return Blocks(results, float(params.get("attribute", {}).get("confidence", 0.0)))


def differences(before: Blocks, after: Blocks) -> list[BlockResult]:
    """Return every block with what its share gained; its interval has 0 where the two overlap.

    A block that is present in one revision alone has a share of 0 in the other.
    """
    here = {result.block: result.numbers for result in after.results}
    there = {result.block: result.numbers for result in before.results}
    results = []
    for block in sorted(here.keys() | there.keys()):
        new, old = here.get(block, {}), there.get(block, {})
        numbers = {}
        if new or old:
            numbers = {
                "before": old.get("share", 0.0),
                "after": new.get("share", 0.0),
                "share": new.get("share", 0.0) - old.get("share", 0.0),
                "share_low": new.get("share_low", 0.0) - old.get("share_high", 0.0),
                "share_high": new.get("share_high", 0.0) - old.get("share_low", 0.0),
            }
        results.append(BlockResult(block, bool(numbers), kept=False, numbers=numbers))
    return results


def moves(before: Blocks, after: Blocks) -> list[Move]:
    """Return how the first blocks of both moved, by their rank in the later one."""
    tables = [
        {str(one.block): one for one in blocks.results if one.present} for blocks in (before, after)
    ]
    ranks = [
        {name: rank for rank, name in enumerate(sorted(t, key=lambda n: -t[n].numbers["share"]), 1)}
        for t in tables
    ]
    first = [name for rank in reversed(ranks) for name in list(rank)[:_MOVED_SHOWN]]
    overlap = {
        str(one.block): one.numbers["share_low"] <= 0.0 <= one.numbers["share_high"]
        for one in differences(before, after)
        if one.present
    }
    return [
        Move(
            block=name,
            before=_share(tables[0].get(name)),
            after=_share(tables[1].get(name)),
            before_rank=str(ranks[0].get(name, _DASH)),
            after_rank=str(ranks[1].get(name, _DASH)),
            step=ranks[0][name] - ranks[1][name] if name in ranks[0] and name in ranks[1] else 0,
            overlap=overlap[name],
        )
        for name in dict.fromkeys(first)
    ]


def in_a_sentence(review: Review) -> str:
    """Return what changed and whether it helped, before any table."""
    # A parameter that is new or gone says less than one with another value.
    told = [c for c in review.params if c.before is not None and c.after is not None]
    names = [f"{c.name} {_value(c.before)} → {_value(c.after)}" for c in told[:_PARAMS_TOLD]]
    others = len(review.params) - len(names)
    if not review.params:
        changed = "No parameter changed"
    elif names:
        changed = ", ".join(names) + (f" and {count(others, 'other parameter')}" if others else "")
    else:
        changed = f"{count(others, 'parameter')} new or gone"
    trends = [judged.trend for judged in review.metrics]
    better, worse = trends.count("better"), trends.count("worse")
    if not better and not worse:
        return f"{changed}: no metric moved for better or worse."
    return f"{changed}: {count(better, 'metric')} better, {worse} worse."


def write_page(
    review: Review, blocks: tuple[Blocks | None, Blocks | None], shown: Sequence[Shown | None]
) -> str:
    """Return the page; equal results make equal pages: it holds no time, host or path."""
    before, after = blocks
    script = _environment().get_template("review.js").render()
    moved = [judged for judged in review.metrics if judged.trend != "same"]
    return (
        _environment()
        .get_template("review.html")
        .render(
            review=review,
            sentence=in_a_sentence(review),
            params=[(c.name, _value(c.before), _value(c.after)) for c in review.params],
            moved=[_metric_row(judged) for judged in moved],
            same=[_metric_row(judged) for judged in review.metrics if judged.trend == "same"],
            maps=_maps(review, before, after) if before and after else [],
            moves=moves(before, after) if before and after else [],
            slides=_slides(shown),
            style=asset_text("style.css"),
            script=Markup(script),
            script_hash=script_hash(script),
            fonts={name: font_uri(name) for name in FONTS},
            light=LIGHT,
            dark=DARK,
            alone=False,
        )
    )


def _maps(review: Review, before: Blocks, after: Blocks) -> list[tuple[str, Markup, Markup]]:
    """Return each map's heading with its wide and its narrow drawing."""
    difference = Blocks(differences(before, after), after.confidence)
    drawn = []
    for prefix, heading, blocks in (
        ("before", review.base, before),
        ("after", review.head, after),
        ("difference", f"From {review.base} to {review.head}", difference),
    ):
        meaning: Literal["share", "difference"] = (
            "difference" if prefix == "difference" else "share"
        )
        wide, narrow = (
            draw_block_map(
                blocks.results,
                blocks.confidence,
                heading,
                MapStyle(columns, False, f"{prefix}-{kind}", meaning),
            )
            for kind, columns in (
                ("wide", wide_columns(blocks.results)),
                ("narrow", _NARROW_COLUMNS),
            )
        )
        drawn.append((heading, wide, narrow))
    return drawn


def _slides(shown: Sequence[Shown | None]) -> list[Slide]:
    """Return the pictures that both revisions have, by their names."""
    if any(each is None for each in shown):
        return []
    before, after = (dict((*each.tiles, *each.more)) for each in shown if each is not None)
    return [
        Slide(
            name=name,
            before=picture_uri(before[name], FULL_PX),
            after=picture_uri(after[name], FULL_PX),
            equal=_equal(before[name], after[name]),
        )
        for name in before
        if name in after
    ]


def _equal(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def _metric_row(judged: Judged) -> dict[str, str]:
    change = judged.change
    before, after = change.before, change.after
    gain = ""
    if before != after and isinstance(before, int | float) and isinstance(after, int | float):
        gain = f"{after - before:+.4g}" + (
            f" ({100 * (after - before) / abs(before):+.1f} %)" if before else ""
        )
    return {
        "name": change.name,
        "before": _value(before),
        "after": _value(after),
        "gain": gain.replace("-", "−"),
        "trend": "changed" if judged.trend == "neutral" else judged.trend,
        "broken": judged.broken,
    }


def _value(value: Value) -> str:
    if value is None:
        return _DASH
    return f"{value:.6g}" if isinstance(value, float) else (str(value) or "(empty)")


def _share(result: BlockResult | None) -> str:
    if result is None:
        return "not present"
    ends = interval(result.numbers["share_low"], result.numbers["share_high"])
    return f"{percent(result.numbers['share'])} ({ends})"


def _kept(curve: bytes | None, blocks_kept: int | None) -> set[str]:
    if curve is None or blocks_kept is None:
        return set()
    rows = pd.read_csv(io.BytesIO(curve)).sort_values("blocks")
    return {str(name) for name in rows.loc[rows["blocks"] <= blocks_kept, "added"]}


def _read_metrics(root: Path, revision: str | None, stage: str) -> dict[str, Any]:
    content = read_file(root, revision, f"data/{stage}/metrics.json")
    found: dict[str, Any] = json.loads(content) if content else {}
    return found


@cache
def _environment() -> jinja2.Environment:
    """Return the report's environment with the templates here before its own."""
    report = environment()
    here = jinja2.PackageLoader("flows.review", "templates")
    loaders = [here, *([report.loader] if report.loader else [])]
    return report.overlay(loader=jinja2.ChoiceLoader(loaders))
