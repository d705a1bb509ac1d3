"""The answers of the first screen: which blocks matter most, how sure that is, what slim costs.

A block's possible ranks follow from the intervals of the shares alone: it cannot come before a
block whose whole interval lies above its own, nor after one whose whole interval lies below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.contracts.params import Params
from stages.reporting.evidence import BlockResult, Evidence, Metrics
from stages.reporting.words import count, file_size, in_words, interval, percent

LEADERS: Final = 5
"""So many blocks are named on the first screen."""

_RIVALS_NAMED: Final = 4


@dataclass(frozen=True)
class Places:
    """The first and the last rank that a block may have; 1 is the largest share."""

    best: int
    worst: int

    def __str__(self) -> str:
        """Return `3 to 7`, or `1` where only one rank is possible."""
        return str(self.best) if self.best == self.worst else f"{self.best} to {self.worst}"


@dataclass(frozen=True)
class Leader:
    """One of the first blocks, with its interval and its possible ranks in words."""

    block: str
    share: float
    interval: str
    places: str


@dataclass(frozen=True)
class Answers:
    """What a person asks first.

    `together` is the share of the leaders, `evenly` what it would be if all blocks had the same.
    """

    leaders: Sequence[Leader]
    together: float
    evenly: float
    certainty: Sequence[str]
    slim_size: str
    slim_words: str
    lost: str
    lost_words: str


def possible_places(ranked: Sequence[BlockResult]) -> list[Places]:
    """Return the ranks that the intervals allow each block, in the order of `ranked`."""
    ends = [(each.numbers["share_low"], each.numbers["share_high"]) for each in ranked]
    return [
        Places(
            1 + sum(other_low > high for other_low, _ in ends),
            len(ends) - sum(other_high < low for _, other_high in ends),
        )
        for low, high in ends
    ]


def answer(evidence: Evidence, params: Params) -> Answers:
    """Return the answers to the questions that the first screen asks for its reader."""
    ranked = evidence.ranked
    places = possible_places(ranked)
    first = list(zip(ranked, places, strict=True))[:LEADERS]
    slim, whole = evidence.metrics["slim"], evidence.folders.adapter.stat().st_size
    return Answers(
        leaders=[
            Leader(
                block=str(each.block),
                share=each.numbers["share"],
                interval=interval(each.number("share_low"), each.number("share_high")),
                places=str(place),
            )
            for each, place in first
        ],
        together=sum(each.numbers["share"] for each, _ in first),
        evenly=len(first) / len(ranked),
        certainty=_certainty(ranked, places, params.attribute.confidence),
        slim_size=file_size(slim["bytes"]),
        slim_words=(
            f"{percent(slim['bytes_ratio'], 0)} of the full LoRA's {file_size(whole)}: "
            f"{slim['blocks_kept']:.0f} of {count(len(ranked), 'block')}."
        ),
        lost=percent(1.0 - slim["recovery"], 0),
        lost_words=_lost(slim, params, evidence.folders.slimmed / "images"),
    )


def _certainty(
    ranked: Sequence[BlockResult], places: Sequence[Places], confidence: float
) -> list[str]:
    """Return sentences on who is first, and on who else may be among the first."""
    names = [str(each.block) for each in ranked]
    leaders = min(LEADERS, len(names))
    open_first = sum(place.best == 1 for place in places)
    if open_first == 1:
        first = f"{names[0]} is first: no other block's {percent(confidence, 0)} interval reaches"
        first += " its own."
    else:
        first = f"{in_words(open_first).capitalize()} blocks could be first: their"
        first += f" {percent(confidence, 0)} intervals overlap."
    firm = sum(place.worst <= leaders for place in places[:leaders])
    rivals = [
        name
        for name, place in zip(names[leaders:], places[leaders:], strict=True)
        if place.best <= leaders
    ]
    if not rivals:
        return [first, f"These {leaders} are the top {leaders}: no other interval reaches them."]
    sure = {0: f"None of these {leaders} is", 1: f"Only 1 of these {leaders} is"}
    certain = sure.get(firm, f"Only {firm} of these {leaders} are")
    more = len(rivals) - _RIVALS_NAMED
    named = ", ".join(rivals[:_RIVALS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return [
        first,
        f"{certain} certain to be in the top {leaders}; "
        f"{'the others' if firm else 'they'} could change places with {named}.",
    ]


def _lost(slim: Metrics, params: Params, pictures: Path) -> str:
    most = percent(1.0 - slim["recovery_low"], 0)
    shown = sum(place.is_dir() for place in pictures.glob("held-out-*-*"))
    prompts = count(len(params.prompts.held_out), "prompt")
    return (
        f"of the effect, on {count(shown, 'picture')} of {prompts}"
        f" that had no say in the choice; {most} at the far end of the"
        f" {percent(params.slim.confidence, 0)} interval."
    )
