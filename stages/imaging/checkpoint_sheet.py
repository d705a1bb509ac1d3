"""Checkpoints x prompts on one sheet: a row of pictures per checkpoint, its scores beside them.

Pictures are RGB uint8 [height, width, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from stages.imaging.lettering import fit_text, write_text

Picture = npt.NDArray[np.uint8]

_THUMB_PX: Final = 208
_GAP_PX: Final = 10
_MARGIN_PX: Final = 36
_NOTES_PX: Final = 380
_HEADING_PX: Final = 16
_LABEL_PX: Final = 24
_NOTE_PX: Final = 18
_LINE_PX: Final = 25
_LARGEST_SIDE: Final = 60_000  # PNG readers give up above 65,535
MOST_ROWS: Final = 250
"""Rows of one sheet: with them it stays below that side."""

_PAPER: Final = (250, 249, 246)
_INK: Final = (26, 28, 33)
_FAINT: Final = (104, 106, 112)
_CHOSEN: Final = (182, 67, 30)


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint: its name, its scores in lines, one picture per prompt; `chosen` is marked."""

    label: str
    notes: Sequence[str]
    pictures: Sequence[Picture]
    chosen: bool


def checkpoint_sheet(prompts: Sequence[str], rows: Sequence[CheckpointRow]) -> Picture:
    """Return the sheet: prompts as columns, checkpoints as rows.

    Raises:
        ValueError: there is no row, a row has not one picture per prompt, or the rows are too many
            for one picture.
    """
    if not rows or any(len(row.pictures) != len(prompts) for row in rows):
        raise ValueError(f"expected rows of {len(prompts)} pictures")
    width = 2 * _MARGIN_PX + _NOTES_PX + len(prompts) * (_THUMB_PX + _GAP_PX)
    top = _MARGIN_PX + _HEADING_PX + 2 * _GAP_PX
    height = top + len(rows) * (_THUMB_PX + _GAP_PX) + _MARGIN_PX
    if width > _LARGEST_SIDE or len(rows) > MOST_ROWS:
        raise ValueError(f"{len(rows)} checkpoints of {len(prompts)} prompts do not fit one sheet")
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _MARGIN_PX + _NOTES_PX
    for column, prompt in enumerate(prompts):
        place = (left + column * (_THUMB_PX + _GAP_PX), _MARGIN_PX)
        write_text(draw, place, fit_text(prompt, _HEADING_PX, _THUMB_PX), _HEADING_PX, _FAINT)
    for number, row in enumerate(rows):
        _draw_row(sheet, draw, top + number * (_THUMB_PX + _GAP_PX), row)
    return np.asarray(sheet, dtype=np.uint8)


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, row: CheckpointRow) -> None:
    room = _NOTES_PX - _GAP_PX
    colour = _CHOSEN if row.chosen else _INK
    label = f"{row.label}, chosen" if row.chosen else row.label
    write_text(draw, (_MARGIN_PX, top), fit_text(label, _LABEL_PX, room), _LABEL_PX, colour)
    for line, note in enumerate(row.notes):
        place = (_MARGIN_PX, top + _LABEL_PX + 12 + line * _LINE_PX)
        write_text(draw, place, fit_text(note, _NOTE_PX, room), _NOTE_PX, _FAINT)
    left = _MARGIN_PX + _NOTES_PX
    for column, picture in enumerate(row.pictures):
        at = left + column * (_THUMB_PX + _GAP_PX)
        small = Image.fromarray(picture).resize((_THUMB_PX, _THUMB_PX), Image.Resampling.LANCZOS)
        sheet.paste(small, (at, top))
    if row.chosen:
        right = left + len(row.pictures) * (_THUMB_PX + _GAP_PX) - _GAP_PX
        draw.rectangle(
            (left - 4, top - 4, right + 3, top + _THUMB_PX + 3), outline=_CHOSEN, width=3
        )
