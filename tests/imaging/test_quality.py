"""The numbers on a picture move the way a person's judgement of it does."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFilter

from stages.imaging.quality import blur
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
