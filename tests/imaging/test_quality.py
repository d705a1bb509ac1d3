"""The numbers on a picture move the way a person's judgement of it does."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFilter

from stages.imaging.quality import bars, blur, measure
from tests.imaging.drawings import scenery


def test_blur_falls_with_every_softening() -> None:
    """The sharper of two versions of one picture has the larger number; a plain one has none."""
    picture = scenery(128, 128)
    soft, softer = (picture.filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 3))
    numbers = [blur(np.asarray(image)) for image in (picture, soft, softer)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > 10 * numbers[2]
    assert blur(np.full((64, 64, 3), 90, np.uint8)) == 0.0


def test_blur_is_the_variance_of_the_laplacian() -> None:
    """One white pixel on black: the kernel's own values, on a 5x5 picture."""
    pixels = np.zeros((5, 5, 3), np.uint8)
    pixels[2, 2] = 255
    values = np.array([-4 * 255.0, *[255.0] * 4, *[0.0] * 20])
    assert blur(pixels) == pytest.approx(values.var())


@pytest.mark.parametrize("upright", [True, False])
def test_letterbox_is_seen(upright: bool) -> None:
    """Bars at two opposite edges, in either direction, and how much of the picture they take."""
    pixels = np.asarray(scenery(128, 128)).copy()
    pixels[:16] = pixels[112:] = (8, 8, 8)
    assert bars(pixels if upright else pixels.transpose(1, 0, 2)) == pytest.approx(0.25, abs=0.02)


def test_a_frame_is_seen() -> None:
    """One colour on all four sides."""
    pixels = np.full((128, 128, 3), 250, np.uint8)
    pixels[10:118, 10:118] = np.minimum(np.asarray(scenery(108, 108)), 200)
    assert bars(pixels) == pytest.approx(20 / 128, abs=0.02)


def test_backgrounds_are_no_bars() -> None:
    """A plain ground, stripes, and a sky over one edge only are the picture's own."""
    plain = np.full((128, 128, 3), 200, np.uint8)
    plain[40:90, 30:100] = 20
    striped = np.full((128, 128, 3), 200, np.uint8)
    for start in range(8, 128, 16):
        striped[start : start + 8] = 60
    striped[120:] = 200
    striped[30:100, 40:80] = np.asarray(scenery(40, 70))
    sky = np.asarray(scenery(128, 128)).copy()
    sky[:20] = 250
    assert [bars(pixels) for pixels in (plain, striped, sky)] == [0.0, 0.0, 0.0]
    assert bars(np.asarray(scenery(128, 128))) == 0.0


def test_dark_and_plain_pictures_have_small_numbers() -> None:
    """Near-black is about the brightest pixels, near-uniform about how far they vary."""
    night = (np.asarray(scenery(64, 64)) // 12).astype(np.uint8)
    night[0, 0] = 255
    assert measure(night, night).brightest < 40
    wall = np.full((64, 64, 3), 180, np.uint8)
    assert measure(wall, wall).spread == 0.0
    lively = np.asarray(scenery(64, 64))
    assert measure(lively, lively).brightest > 150
    assert measure(lively, lively).spread > 20
