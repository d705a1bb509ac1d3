"""The lens on contact sheets: one prompt and seed, all blocks in model order, with numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.contracts.blocks import BlockId
from stages.imaging.heatmap import (
    Difference,
    HeatmapStyle,
    Scale,
    colourise,
    difference,
    own_scale,
    peak,
)
from stages.imaging.metrics import Picture, recovery
from stages.imaging.rendered_pairs import RenderedPair
from stages.imaging.sheet import Group, SheetLook, Tile, contact_sheets

MODES: Final = {
    "only": "Each block alone",
    "without": "All blocks but one",
    "random": "Noise of each block's norm, alone",
}
"""Kinds of pictures of single blocks, and what a sheet of them is called."""

_STACKS: Final = {
    "double": "Double blocks",
    "single": "Single blocks",
    "base": "Outside the blocks",
}
_CHOICES: Final = ("strength:", "only-group:", "without-group:", "subset:")


@dataclass(frozen=True)
class MapLook:
    """How all heat maps are drawn: on the shared scale or each on its own."""

    style: HeatmapStyle
    shared: Scale
    own: bool
    rows: int

    def scale(self, item: Difference) -> Scale:
        """Return the scale of one map."""
        return own_scale(peak(item)) if self.own else self.shared


def lens_sheets(
    pair: RenderedPair,
    mode: str,
    numbers: Mapping[str, Mapping[str, float]],
    note: str,
    look: MapLook,
) -> list[Picture]:
    """Return the pages of one mode of `MODES`.

    Args:
        pair: the prompt and seed that are shown.
        mode: with pictures of all blocks in the pair.
        numbers: by block, the columns of BLOCKS.
        note: what there is to know besides, such as how many pictures the numbers are means of.
        look: of the maps.
    """
    groups = [
        Group(
            "References",
            [
                Tile("none: base model", "LoRA off", pair.none, None),
                _tile(pair, "full: whole LoRA", "full", "all blocks on", look),
            ],
        )
    ]
    for stack, heading in _STACKS.items():
        members = sorted(b for name in numbers if (b := BlockId.parse(name)).stack == stack)
        tiles = [
            _tile(pair, str(block), f"{mode}:{block}", _words(numbers[str(block)], mode), look)
            for block in members
        ]
        groups.append(Group(f"{heading}: {len(tiles)} with LoRA weights", tiles))
    choices = [name for name in pair.files if name.startswith(_CHOICES)]
    tiles = [_tile(pair, name, name, _own_words(pair, name), look) for name in choices]
    groups.append(Group("Strengths, bands and mixes", tiles if mode == "only" else []))
    return contact_sheets(
        MODES[mode], f"“{pair.text}”, seed {pair.seed}, {note}", groups, _sheet(look)
    )


def drawn_modes(pairs: Sequence[RenderedPair]) -> list[str]:
    """Return the modes of which the pairs have pictures."""
    return [mode for mode in MODES if any(v.startswith(f"{mode}:") for v in pairs[0].files)]


def _tile(pair: RenderedPair, label: str, variant: str, note: str, look: MapLook) -> Tile:
    picture = pair.load(variant)
    gap = difference(picture, pair.reference(variant))
    return Tile(label, note, picture, colourise(gap, look.scale(gap), look.style.colour_map))


def _words(numbers: Mapping[str, float], mode: str) -> str:
    words = _recovery_words(numbers[f"{mode}_recovery"])
    if mode == "random":  # the share is that of the trained weights
        return words
    words = f"{words} · share {100.0 * numbers['share']:.1f} %"
    in_noise = mode == "only" and numbers["only_in_noise"] == 1.0
    return f"{words} · within rounding" if in_noise else words


def _own_words(pair: RenderedPair, variant: str) -> str:
    """Return the recovery of this one picture."""
    if np.array_equal(pair.none, pair.full):
        return _recovery_words(np.nan)
    return f"{_recovery_words(recovery(pair.load(variant), pair.none, pair.full))} in this picture"


def _recovery_words(value: float) -> str:
    return f"recovery {'–' if np.isnan(value) else f'{round(value, 2) + 0.0:.2f}'}"  # no -0.00


def _sheet(look: MapLook) -> SheetLook:
    return SheetLook(look.shared, look.style.colour_map, look.rows)
