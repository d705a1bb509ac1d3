"""Letters on pictures are the same on every machine and stay in their place."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from stages.imaging.lettering import ELLIPSIS, fit_text, font, text_width, write_boxed, write_text


def test_the_font_comes_with_pillow() -> None:
    """A system font would give other bytes on other machines."""
    assert font(20).getname()[0] == "Aileron"
    assert text_width("MSE 12", 20) > text_width("MSE", 20) > 0


def test_long_text_is_cut_to_its_room() -> None:
    """A caption must not run over its neighbour."""
    text = "a very long prompt about a robot in front of a wall"
    cut = fit_text(text, 16, 120)
    assert cut.endswith(ELLIPSIS)
    assert text_width(cut, 16) <= 120
    assert fit_text("short", 16, 120) == "short"


def test_boxed_text_is_readable_on_white_and_on_black() -> None:
    """White letters on a black box, whatever is beneath."""
    for ground in (0, 255):
        image = Image.new("RGB", (120, 40), (ground, ground, ground))
        write_boxed(ImageDraw.Draw(image), (4, 4), "MSE 3", 16)
        box = np.asarray(image)[6:24, 8:40]
        assert box.min() == 0
        assert box.max() == 255


def test_text_starts_at_its_place() -> None:
    """Nothing is drawn above or to the left."""
    image = Image.new("RGB", (60, 40))
    write_text(ImageDraw.Draw(image), (20, 10), "8", 16, (255, 255, 255))
    drawn = np.argwhere(np.asarray(image)[:, :, 0])
    assert drawn.min(axis=0)[0] >= 10
    assert drawn.min(axis=0)[1] >= 20
