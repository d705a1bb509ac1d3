"""All blocks on sheets: each block's picture and its heat map, with its numbers.

Pictures are RGB uint8 [height, width, 3]. A sheet is as wide as its columns need, about 3,000
pixels, and as high as so many rows, a size that every viewer opens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from stages.imaging.heatmap import Scale, draw_scale
from stages.imaging.lettering import fit_text, write_text
from stages.imaging.metrics import Picture

_THUMB_PX: Final = 176
_GAP_PX: Final = 4  # between a picture and its heat map
_CELL_GAP_PX: Final = 18
_MARGIN_PX: Final = 40
_COLUMNS: Final = 8
_LABEL_PX: Final = 22
_NOTE_PX: Final = 17
_TITLE_PX: Final = 34
_SCALE_SIZE_PX: Final = (640, 44)
_CELL_WIDTH_PX: Final = 2 * _THUMB_PX + _GAP_PX
_CELL_HEIGHT_PX: Final = _LABEL_PX + 10 + _THUMB_PX + 6 + _NOTE_PX + 8
_GROUP_HEIGHT_PX: Final = _LABEL_PX + 26
_HEAD_HEIGHT_PX: Final = _MARGIN_PX + _TITLE_PX + _LABEL_PX + 44

_PAPER: Final = (250, 249, 246)
_INK: Final = (26, 28, 33)
_FAINT: Final = (104, 106, 112)
_LINE: Final = (214, 211, 203)


@dataclass(frozen=True)
class Tile:
    """One cell: a picture with a label above, a note below and, if it has one, its heat map."""

    label: str
    note: str
    picture: Picture
    heatmap: Picture | None


@dataclass(frozen=True)
class SheetLook:
    """The scale of all heat maps and its colours, and how many rows of cells a page has."""

    scale: Scale
    colour_map: str
    rows: int


@dataclass(frozen=True)
class Group:
    """Cells under one heading."""

    heading: str
    tiles: Sequence[Tile]


def contact_sheets(
    title: str, subtitle: str, groups: Sequence[Group], look: SheetLook
) -> list[Picture]:
    """Return the pages: title, colour scale, then the groups one below the other.

    A group that does not fit goes on under the same heading; no page has more rows of cells than
    `look.rows`.

    Raises:
        ValueError: there is no cell to show.
    """
    if not any(group.tiles for group in groups):
        raise ValueError("a contact sheet needs at least one picture")
    # Never narrower than four cells: title and colour scale need the room.
    columns = min(_COLUMNS, max(4, *(len(group.tiles) for group in groups)))
    pages = _paged(groups, columns, look.rows)
    drawn = []
    for number, page in enumerate(pages, start=1):
        sheet = _blank_sheet(page, columns)
        words = title if len(pages) == 1 else f"{title} ({number} of {len(pages)})"
        strip = draw_scale(*_SCALE_SIZE_PX, look.scale, look.colour_map)
        _write_head(sheet, words, subtitle, strip)
        top = _HEAD_HEIGHT_PX
        for group in page:
            _draw_group(sheet, top, group, columns)
            top += _group_height(group, columns)
        drawn.append(np.asarray(sheet, dtype=np.uint8))
    return drawn


def _paged(groups: Sequence[Group], columns: int, rows: int) -> list[list[Group]]:
    """Return the groups cut into pages of at most `rows` rows; empty groups are left out."""
    pages: list[list[Group]] = [[]]
    room = rows
    for group in groups:
        left = list(group.tiles)
        while left:
            if room == 0:
                pages.append([])
                room = rows
            part, left = left[: room * columns], left[room * columns :]
            pages[-1].append(Group(group.heading, part))
            room -= math.ceil(len(part) / columns)
    return pages


def _blank_sheet(groups: Sequence[Group], columns: int) -> Image.Image:
    width = 2 * _MARGIN_PX + columns * (_CELL_WIDTH_PX + _CELL_GAP_PX) - _CELL_GAP_PX
    rows = sum(_group_height(group, columns) for group in groups)
    return Image.new("RGB", (width, _HEAD_HEIGHT_PX + rows + _MARGIN_PX), _PAPER)


def _group_height(group: Group, columns: int) -> int:
    rows = math.ceil(len(group.tiles) / columns)
    return _GROUP_HEIGHT_PX + rows * (_CELL_HEIGHT_PX + _CELL_GAP_PX) if rows else 0


def _write_head(sheet: Image.Image, title: str, subtitle: str, scale_strip: Picture) -> None:
    draw = ImageDraw.Draw(sheet)
    strip = Image.fromarray(scale_strip)
    strip_left = sheet.width - _MARGIN_PX - strip.width
    room = strip_left - 2 * _MARGIN_PX
    write_text(draw, (_MARGIN_PX, _MARGIN_PX), fit_text(title, _TITLE_PX, room), _TITLE_PX, _INK)
    place = (_MARGIN_PX, _MARGIN_PX + _TITLE_PX + 16)
    write_text(draw, place, fit_text(subtitle, _LABEL_PX, room), _LABEL_PX, _FAINT)
    sheet.paste(strip, (strip_left, _MARGIN_PX))
    words = "absolute difference, grey levels of 255"
    write_text(draw, (strip_left, place[1]), words, _LABEL_PX, _FAINT)


def _draw_group(sheet: Image.Image, top: int, group: Group, columns: int) -> None:
    if not group.tiles:
        return
    draw = ImageDraw.Draw(sheet)
    draw.line((_MARGIN_PX, top, sheet.width - _MARGIN_PX, top), fill=_LINE, width=2)
    write_text(draw, (_MARGIN_PX, top + 12), group.heading, _LABEL_PX, _INK)
    for position, tile in enumerate(group.tiles):
        row, column = divmod(position, columns)
        left = _MARGIN_PX + column * (_CELL_WIDTH_PX + _CELL_GAP_PX)
        cell_top = top + _GROUP_HEIGHT_PX + row * (_CELL_HEIGHT_PX + _CELL_GAP_PX)
        _draw_tile(sheet, (left, cell_top), tile)


def _draw_tile(sheet: Image.Image, place: tuple[int, int], tile: Tile) -> None:
    draw = ImageDraw.Draw(sheet)
    left, top = place
    write_text(draw, place, fit_text(tile.label, _LABEL_PX, _CELL_WIDTH_PX), _LABEL_PX, _INK)
    picture_top = top + _LABEL_PX + 10
    sheet.paste(_thumbnail(tile.picture), (left, picture_top))
    if tile.heatmap is not None:
        sheet.paste(_thumbnail(tile.heatmap), (left + _THUMB_PX + _GAP_PX, picture_top))
    note = fit_text(tile.note, _NOTE_PX, _CELL_WIDTH_PX)
    write_text(draw, (left, picture_top + _THUMB_PX + 6), note, _NOTE_PX, _FAINT)


def _thumbnail(picture: Picture) -> Image.Image:
    return Image.fromarray(picture).resize((_THUMB_PX, _THUMB_PX), Image.Resampling.LANCZOS)
