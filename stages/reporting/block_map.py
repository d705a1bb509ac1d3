"""The map of all blocks, coloured by their share of the effect, as SVG.

One picture for the page, with links and live colours, and one that stands alone, for a README.
The colour is one hue from pale to deep, so that it reads without colour vision; blocks that work
against the effect have another one, and blocks without LoRA weights are hatched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from markupsafe import Markup

from stages.contracts.blocks import Stack
from stages.reporting.evidence import BlockResult
from stages.reporting.palette import DARK, LIGHT
from stages.reporting.templating import render
from stages.reporting.words import count, decimal, percent

STEPS: Final = 8
"""Colours run from step 0 to this one, the largest share."""

NEGATIVE_STEPS: Final = 3

_CELL_WIDTH: Final = 46
_CELL_HEIGHT: Final = 50
_GAP: Final = 5
_HEADING: Final = 30
_STACK_GAP: Final = 12
_SHOWN_SHARE: Final = 0.0005  # smaller ones would read 0.0
_HEADINGS: Final[dict[Stack, str]] = {
    "double": "Double blocks",
    "single": "Single blocks",
    "base": "Outside the blocks",
}


@dataclass(frozen=True)
class Cell:
    """One block on the map: place, colour class, letters and the sentence for hover and focus."""

    name: str
    x: int
    y: int
    width: int
    colour: str
    index: str
    value: str
    sentence: str
    uncertain: bool
    kept: bool


@dataclass(frozen=True)
class Heading:
    """The words above a stack of blocks."""

    y: int
    text: str
    note: str


@dataclass(frozen=True)
class MapStyle:
    """How the map is laid out: cells per row, alone or in the page, prefix of its ids."""

    columns: int
    alone: bool
    prefix: str
    meaning: Literal["share", "difference"] = "share"
    """`difference` of two runs: `share` is what a block gained, in `before` and `after` it had."""


def wide_columns(blocks: Sequence[BlockResult]) -> int:
    """Return the cells per row that show the two stacks best: 19 for FLUX.1's 19 and 38."""
    doubles = sum(result.block.stack == "double" for result in blocks)
    singles = sum(result.block.stack == "single" for result in blocks)
    return max(doubles, math.ceil(singles / 2), 8)


def draw_block_map(
    blocks: Sequence[BlockResult], confidence: float, title: str, style: MapStyle
) -> Markup:
    """Return the map as an SVG element (or a whole SVG file, where `style.alone`)."""
    largest = _largest(blocks, style)
    cells: list[Cell] = []
    headings: list[Heading] = []
    top = 0
    for stack, words in _HEADINGS.items():
        members = [result for result in blocks if result.block.stack == stack]
        if not members:
            continue
        headings.append(Heading(top + _HEADING - 12, words, _stack_note(members, style)))
        top += _HEADING
        for position, result in enumerate(members):
            row, column = divmod(position, style.columns)
            place = (column * (_CELL_WIDTH + _GAP), top + row * (_CELL_HEIGHT + _GAP))
            cells.append(_cell(result, place, largest, _Told(confidence, style.meaning)))
        rows = math.ceil(len(members) / style.columns)
        top += rows * (_CELL_HEIGHT + _GAP) + _STACK_GAP
    return render(
        "block-map.svg",
        cells=cells,
        headings=headings,
        width=style.columns * (_CELL_WIDTH + _GAP) - _GAP,
        height=top + _legend_height(style),
        legend_top=top,
        cell_height=_CELL_HEIGHT,
        largest=largest,
        steps=range(STEPS + 1),
        title=title,
        summary=_summary(blocks, style),
        difference=style.meaning == "difference",
        alone=style.alone,
        prefix=style.prefix,
        light=LIGHT,
        dark=DARK,
        narrow=_is_narrow(style),
        negative=any(cell.colour.startswith("n") for cell in cells),
    )


def describe_block(result: BlockResult, confidence: float) -> str:
    """Return what is known of a block's share, in a sentence."""
    if not result.present:
        return f"{result.block}: not present, the LoRA has no weights here"
    low, high = result.numbers["share_low"], result.numbers["share_high"]
    return (
        f"{result.block}: {percent(result.numbers['share'])} of the effect"
        f" ({percent(confidence, 0)} interval {decimal(100 * low, 1)} to {percent(high)})"
    )


def describe_difference(result: BlockResult) -> str:
    """Return how a block's share differs between two runs, in a sentence."""
    if not result.present:
        return f"{result.block}: not present in either"
    before, after = result.numbers["before"], result.numbers["after"]
    doubt = ", their intervals overlap" if share_is_uncertain(result) else ""
    return (
        f"{result.block}: {_signed(result.numbers['share'])} points,"
        f" from {percent(before)} to {percent(after)}{doubt}"
    )


def share_is_uncertain(result: BlockResult) -> bool:
    """Return whether a present block's interval includes 0: no effect is possible too."""
    return result.present and result.numbers["share_low"] <= 0.0 <= result.numbers["share_high"]


@dataclass(frozen=True)
class _Told:
    """What a cell's sentence is about."""

    confidence: float
    meaning: str

    def sentence(self, result: BlockResult) -> str:
        if self.meaning == "difference":
            return describe_difference(result)
        return describe_block(result, self.confidence)

    def value(self, share: float) -> str:
        return _signed(share) if self.meaning == "difference" else decimal(100 * share, 1)


def _cell(result: BlockResult, place: tuple[int, int], largest: float, told: _Told) -> Cell:
    is_base = result.block.stack == "base"
    width = 4 * _CELL_WIDTH + 3 * _GAP if is_base else _CELL_WIDTH
    share = result.number("share")
    shown = share is not None and abs(share) >= _SHOWN_SHARE
    return Cell(
        name=str(result.block),
        x=place[0],
        y=place[1],
        width=width,
        colour=_colour(share, largest),
        index="base" if is_base else str(result.block.index),
        value=told.value(share) if share is not None and shown else _no_value(result),
        sentence=told.sentence(result),
        uncertain=share_is_uncertain(result),
        kept=result.kept,
    )


def _signed(share: float) -> str:
    """Return percentage points with their sign: `+0.4`."""
    text = decimal(100.0 * share, 1)
    return f"+{text}" if share > 0.0 else text


def _largest(blocks: Sequence[BlockResult], style: MapStyle) -> float:
    """Return the share of the deepest colour; a difference is as deep either way."""
    shares = [result.numbers["share"] for result in blocks if result.present]
    if style.meaning == "difference":
        shares = [abs(share) for share in shares]
    return max(shares, default=0.0)


def _no_value(result: BlockResult) -> str:
    if result.present:
        return "0"
    return "not present" if result.block.stack == "base" else ""


def _colour(share: float | None, largest: float) -> str:
    """Return the colour class: absent, s0 (no effect) to s8 (largest share), or n1 to n3."""
    if share is None:
        return "absent"
    if share < 0.0:
        steps = NEGATIVE_STEPS if largest <= 0.0 else math.ceil(NEGATIVE_STEPS * -share / largest)
        return f"n{min(NEGATIVE_STEPS, steps)}" if -share >= _SHOWN_SHARE else "s0"
    return f"s{round(STEPS * share / largest) if largest > 0.0 else 0}"


def _stack_note(members: Sequence[BlockResult], style: MapStyle) -> str:
    present = [result for result in members if result.present]
    if not present:
        return "not present in this LoRA" if style.meaning == "share" else "not present in either"
    if style.meaning == "difference":
        return f"{_signed(sum(result.numbers['share'] for result in present))} points"
    total = percent(sum(result.numbers["share"] for result in present))
    if len(present) == len(members):
        return f"{total} of the effect"
    return f"{total} of the effect, {count(len(present), 'block')} of {len(members)} present"


def _summary(blocks: Sequence[BlockResult], style: MapStyle) -> str:
    present = sum(result.present for result in blocks)
    what = "share" if style.meaning == "share" else "the difference of its share"
    return f"Map of {len(blocks)} blocks, {present} with LoRA weights, coloured by {what}"


def _is_narrow(style: MapStyle) -> bool:
    return style.columns < 14


def _legend_height(style: MapStyle) -> int:
    return 74 if _is_narrow(style) else 40
