"""The contact sheet shows every picture it is given, and the same way each time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from stages.imaging.dataset_sheet import Cell, draw_dataset, make_thumbnail
from tests.imaging.drawings import scenery


def cells(count: int, tags: tuple[str, ...] = ()) -> list[Cell]:
    """Return cells of different pictures."""
    return [Cell(f"p{n}", tags, make_thumbnail(scenery(200, 120, n))) for n in range(count)]


def test_sheet_grows_with_the_pictures_and_repeats_itself() -> None:
    """Thirteen pictures need a second row of twelve; equal input is equal bytes."""
    twelve, thirteen = (Image.open(io.BytesIO(draw_dataset("t", [], cells(n)))) for n in (12, 13))
    assert twelve.width == thirteen.width
    assert thirteen.height > twelve.height
    assert draw_dataset("t", ["few"], cells(3)) == draw_dataset("t", ["few"], cells(3))


def test_warnings_are_drawn() -> None:
    """A tag, a note on the set and a skipped picture each change the sheet."""
    plain = draw_dataset("t", [], cells(2))
    assert draw_dataset("t", [], cells(2, ("blurred",))) != plain
    assert draw_dataset("t", ["low variety"], cells(2)) != plain
    assert draw_dataset("t", [], [*cells(1), Cell("p1", ("skipped",), None)]) != plain


def test_nothing_to_show_is_an_error() -> None:
    """An empty sheet would hide that a stage had no pictures."""
    with pytest.raises(ValueError, match="at least one picture"):
        draw_dataset("t", [], [])


def test_thumbnail_keeps_the_shape() -> None:
    """Buckets are seen as what they are."""
    thumbnail = make_thumbnail(scenery(400, 200))
    assert thumbnail.size == (160, 80)
    assert np.asarray(thumbnail).std() > 10
