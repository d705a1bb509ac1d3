"""All pictures of a dataset on one sheet, with the warnings drawn on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import Image, ImageDraw

from stages.imaging.lettering import fit_text, write_boxed, write_text

SHOWN_CELLS: Final = 240
"""So that the sheet of 2,000 pictures is no larger in memory than that of 240."""

_COLUMNS: Final = 12
_THUMB_PX: Final = 160
_GAP_PX: Final = 14
_MARGIN_PX: Final = 32
_TITLE_PX: Final = 28
_LABEL_PX: Final = 15
_TAG_PX: Final = 13
_TAG_STEP_PX: Final = 22
_CELL_HEIGHT_PX: Final = _THUMB_PX + _LABEL_PX + 12
_JPEG_QUALITY: Final = 88

_PAPER: Final = (250, 249, 246)
_EMPTY: Final = (226, 223, 215)
_INK: Final = (26, 28, 33)
_WARN: Final = (190, 60, 30)


@dataclass(frozen=True)
class Cell:
    """One picture: its name, the words drawn on it, and its thumbnail (None: it was skipped)."""

    label: str
    tags: Sequence[str]
    thumbnail: Image.Image | None


def make_thumbnail(image: Image.Image) -> Image.Image:
    """Return the picture at the size of a cell, its proportions kept."""
    small = image.convert("RGB")
    small.thumbnail((_THUMB_PX, _THUMB_PX), Image.Resampling.BOX)
    return small


def draw_dataset(title: str, notes: Sequence[str], cells: Sequence[Cell]) -> bytes:
    """Return the sheet as a JPEG file: title, notes on the whole set, then the cells row by row.

    Raises:
        ValueError: there is no cell to show.
    """
    if not cells:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(_COLUMNS, max(5, len(cells)))
    width = 2 * _MARGIN_PX + columns * (_THUMB_PX + _GAP_PX) - _GAP_PX
    top = _MARGIN_PX + _TITLE_PX + 16 + len(notes) * (_LABEL_PX + 10) + 8
    height = top + math.ceil(len(cells) / columns) * (_CELL_HEIGHT_PX + _GAP_PX) + _MARGIN_PX
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    room = width - 2 * _MARGIN_PX
    write_text(draw, (_MARGIN_PX, _MARGIN_PX), fit_text(title, _TITLE_PX, room), _TITLE_PX, _INK)
    for line, note in enumerate(notes):
        place = (_MARGIN_PX, _MARGIN_PX + _TITLE_PX + 16 + line * (_LABEL_PX + 10))
        write_text(draw, place, fit_text(note, _LABEL_PX, room), _LABEL_PX, _WARN)
    for position, cell in enumerate(cells):
        row, column = divmod(position, columns)
        left = _MARGIN_PX + column * (_THUMB_PX + _GAP_PX)
        _draw_cell(sheet, draw, (left, top + row * (_CELL_HEIGHT_PX + _GAP_PX)), cell)
    data = BytesIO()
    sheet.save(data, "JPEG", quality=_JPEG_QUALITY)
    return data.getvalue()


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], cell: Cell
) -> None:
    left, top = place
    frame = (left, top, left + _THUMB_PX - 1, top + _THUMB_PX - 1)
    draw.rectangle(frame, fill=_EMPTY)
    if cell.thumbnail is not None:
        width, height = cell.thumbnail.size
        corner = (left + (_THUMB_PX - width) // 2, top + (_THUMB_PX - height) // 2)
        sheet.paste(cell.thumbnail, corner)
    for line, tag in enumerate(cell.tags):
        text = fit_text(tag, _TAG_PX, _THUMB_PX - 16)
        write_boxed(draw, (left + 4, top + 4 + line * _TAG_STEP_PX), text, _TAG_PX)
    if cell.tags:
        draw.rectangle(frame, outline=_WARN, width=3)
    label = fit_text(cell.label, _LABEL_PX, _THUMB_PX)
    write_text(draw, (left, top + _THUMB_PX + 5), label, _LABEL_PX, _INK)
