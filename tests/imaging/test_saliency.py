"""A crop by saliency keeps what stands out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stages.imaging.saliency import best_window, saliency_map
from tests.imaging.drawings import scenery


@pytest.mark.parametrize("place", [(8, 8), (90, 20), (40, 100), (100, 100)])
def test_the_odd_one_out_is_salient(place: tuple[int, int]) -> None:
    """A small detailed patch on a plain ground has the peak of the map."""
    picture = Image.new("RGB", (128, 128), (180, 180, 190))
    picture.paste(scenery(20, 20), place)
    row, column = np.unravel_index(np.argmax(saliency_map(picture)), (64, 64))
    assert abs(2 * column - place[0] - 10) <= 14
    assert abs(2 * row - place[1] - 10) <= 14


def test_plain_pictures_have_no_salience() -> None:
    """Nothing stands out of nothing, and nothing is divided by zero."""
    assert not saliency_map(Image.new("CMYK", (50, 90))).any()


def test_window_keeps_the_most() -> None:
    """The window lies over the weight; over none or an even one, in the middle."""
    assert best_window(np.array([0.0, 0.0, 0.0, 1.0]), 100, 40) in range(60, 61)
    assert best_window(np.array([1.0, 0.0, 0.0, 0.0]), 100, 40) in range(16)
    assert best_window(np.zeros(4), 101, 40) == 30
    assert best_window(np.ones(4), 100, 100) == 0
