"""The contact sheet shows all blocks at a size that viewers open and eyes can read."""

from __future__ import annotations

import numpy as np
import pytest

from stages.imaging.heatmap import Scale
from stages.imaging.sheet import Group, SheetLook, Tile, contact_sheets

SCALE = Scale(60.0, shared=True)


def tiles(count: int, colour: tuple[int, int, int] = (10, 200, 10)) -> list[Tile]:
    """Return tiles whose picture and map have one colour."""
    picture = np.full((32, 32, 3), colour, dtype=np.uint8)
    return [Tile(f"single.{index}", "recovery 0.10", picture, picture) for index in range(count)]


def sheet(groups: list[Group]) -> np.ndarray:
    """Return the one page of `groups`."""
    (page,) = pages(groups, rows=12)
    return page


def pages(groups: list[Group], rows: int) -> list[np.ndarray]:
    """Return the pages of `groups`."""
    look = SheetLook(SCALE, "inferno", rows)
    return contact_sheets("Each block alone", "“a prompt”, seed 0", groups, look)


def test_fifty_eight_blocks_fit_about_three_thousand_pixels() -> None:
    """Wider sheets are not opened by common viewers, narrower ones cannot be read."""
    drawn = sheet(
        [
            Group("References", tiles(2)),
            Group("Double", tiles(19)),
            Group("Single", tiles(38)),
            Group("Base", tiles(1)),
        ]
    )
    assert drawn.dtype == np.uint8
    assert 2800 <= drawn.shape[1] <= 3200
    assert drawn.shape[0] <= 3600


def test_every_tile_is_drawn() -> None:
    """Both the picture and the heat map of each tile are on the sheet, and nothing is cut off."""
    drawn = sheet([Group("Double", tiles(9)), Group("None", [])])
    green = np.all(drawn == (10, 200, 10), axis=2).sum()
    assert green == 9 * 2 * 176 * 176


def test_long_sheets_are_paged() -> None:
    """No page has more rows than asked for, all are as wide, and every tile is on one of them."""
    groups = [Group("Double", tiles(19)), Group("None", []), Group("Single", tiles(38))]
    drawn = pages(groups, rows=2)
    assert len(drawn) == 4
    assert len({page.shape[1] for page in drawn}) == 1
    assert max(page.shape[0] for page in drawn) < 900
    green = [np.all(page == (10, 200, 10), axis=2).sum() // (2 * 176 * 176) for page in drawn]
    assert green == [16, 3 + 8, 16, 14]


def test_a_tile_may_lack_its_heat_map() -> None:
    """The base model's picture has nothing to be compared with."""
    picture = tiles(1)[0].picture
    drawn = sheet([Group("References", [Tile("none", "LoRA off", picture, None)])])
    assert np.all(drawn == (10, 200, 10), axis=2).sum() == 176 * 176


def test_an_empty_sheet_is_refused() -> None:
    """An empty picture would look like a result."""
    with pytest.raises(ValueError, match="at least one picture"):
        sheet([Group("Double", [])])
