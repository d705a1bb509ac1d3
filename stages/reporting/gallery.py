"""Every block's pictures with their heat maps, for every prompt and seed that fits the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from stages.reporting.block_map import describe_block, share_is_uncertain
from stages.reporting.certainty import Places, possible_places
from stages.reporting.evidence import BlockResult, Evidence
from stages.reporting.pairs import DEVELOP, Pair, read_pairs
from stages.reporting.pictures import map_thumbnail, thumbnail
from stages.reporting.words import error

DrawMap: TypeAlias = Callable[[Path, Path], npt.NDArray[np.uint8]]
"""From a picture and its reference to their difference, 0-255 on the shared scale."""

BUDGET_CHARACTERS: Final = 14_000_000
"""Data URIs of the gallery stay below this, so that the page stays below 25 MB."""

MODES: Final = {"only": "none", "without": "full"}
"""Kinds of block pictures, and the reference that each is compared with."""


@dataclass(frozen=True)
class HeatmapLook:
    """How difference maps are made and shown: the ramp is uint8 [colours, 3] RGB.

    `top` is the difference, in grey levels, of the last colour.
    """

    draw: DrawMap
    ramp: npt.NDArray[np.uint8]
    top: float
    opacity: float
    shared: bool


@dataclass(frozen=True)
class Shot:
    """A block's picture in one mode for one pair; `gain` stretches its map to its own scale.

    `file` is where the picture itself lies, as dvc.yaml writes it.
    """

    pair: str
    mode: str
    picture: str
    heatmap: str
    alt: str
    heatmap_alt: str
    mse: float
    recovery: float | None
    gain: float
    file: str


@dataclass(frozen=True)
class Card:
    """A block in the gallery; `places` are the ranks that the intervals of the shares allow."""

    result: BlockResult
    rank: int
    places: Places
    sentence: str
    uncertain: bool
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Gallery:
    """All cards, largest share first, the pairs they show, and how many pairs there are."""

    cards: Sequence[Card]
    pairs: Sequence[Pair]
    pairs_total: int
    modes: Sequence[str]


def hang_gallery(
    evidence: Evidence, look: HeatmapLook, longest_px: int, confidence: float
) -> Gallery:
    """Return the gallery; it shows as many pairs, in order, as the page has room for."""
    pairs = read_pairs(evidence.rendered, evidence.folders.rendered, DEVELOP)
    shots = _PairShots(evidence, look, longest_px)
    taken: list[dict[str, list[Shot]]] = []
    room = BUDGET_CHARACTERS
    for pair in pairs:
        made = shots.take(pair)
        room -= sum(len(s.picture) + len(s.heatmap) for group in made.values() for s in group)
        # The first pair is always shown: a page without pictures shows nothing.
        if taken and room < 0:
            break
        taken.append(made)
    cards = [
        Card(
            result=result,
            rank=rank,
            places=places,
            sentence=f"{describe_block(result, confidence)}, rank {places}",
            uncertain=share_is_uncertain(result),
            shots=[shot for made in taken for shot in made[str(result.block)]],
        )
        for rank, (result, places) in enumerate(
            zip(evidence.ranked, possible_places(evidence.ranked), strict=True), start=1
        )
    ]
    modes = [mode for mode in MODES if any(s.mode == mode for card in cards for s in card.shots)]
    return Gallery(cards, pairs[: len(taken)], len(pairs), modes)


class _PairShots:
    """Takes all shots of a pair; holds what they have in common."""

    def __init__(self, evidence: Evidence, look: HeatmapLook, longest_px: int) -> None:
        self._look, self._longest_px = look, longest_px
        self._rendered = evidence.folders.rendered
        self._blocks = [str(result.block) for result in evidence.present]
        table = evidence.measured
        keys = zip(table["prompt"], table["seed"], table["variant"], strict=True)
        self._rows = dict(zip(keys, table.to_dict("records"), strict=True))

    def take(self, pair: Pair) -> dict[str, list[Shot]]:
        """Return the shots of every block, by block."""
        jobs = [
            (block, mode)
            for block in self._blocks
            for mode in MODES
            if f"{mode}:{block}" in pair.files
        ]
        made: dict[str, list[Shot]] = {block: [] for block in self._blocks}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for (block, _), shot in zip(
                jobs, pool.map(lambda job: self._shot(pair, *job), jobs), strict=True
            ):
                made[block].append(shot)
        return made

    def _shot(self, pair: Pair, block: str, mode: str) -> Shot:
        variant, reference = f"{mode}:{block}", MODES[mode]
        file = pair.files[variant]
        row = self._rows[pair.prompt, pair.seed, variant]
        mse = float(row[f"mse_to_{reference}"])
        levels = self._look.draw(file, pair.files[reference])
        what = f"only {block}" if mode == "only" else f"all blocks without {block}"
        return Shot(
            pair=pair.key,
            mode=mode,
            picture=thumbnail(file, self._longest_px),
            heatmap=map_thumbnail(levels, self._longest_px),
            alt=f"{what}, {pair.words}",
            heatmap_alt=f"Heat map of the difference to {reference}: MSE {error(mse)}",
            mse=mse,
            recovery=None if np.isnan(row["recovery"]) else float(row["recovery"]),
            file=f"data/render/{file.relative_to(self._rendered).as_posix()}",
            gain=round(self._look.top / max(1.0, float(row["difference_peak"])), 3),
        )
