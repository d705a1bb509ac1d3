"""Every shape becomes the exact square that was asked for, without a stretch or a shift."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stages.imaging.fit import crop_box, pad_size, place, scale
from tests.imaging.drawings import scenery

RED = (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((10, 10), (0, 0, 10, 10)),
        ((16, 10), (3, 0, 13, 10)),
        ((10, 17), (0, 3, 10, 13)),
        ((1, 9), (0, 4, 1, 5)),
    ],
)
def test_crop_is_the_centre_square(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """The square is as large as the shorter side and lies in the middle of the longer one."""
    assert crop_box(*size) == box


@pytest.mark.parametrize(
    ("size", "expected"),
    [((200, 100), (64, 32)), ((100, 200), (32, 64)), ((50, 50), (64, 64)), ((1000, 1), (64, 1))],
)
def test_pad_keeps_the_proportions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The whole picture fits in the square and touches two of its sides."""
    assert pad_size(*size, 64) == expected


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(64, 64), (97, 64), (64, 301), (200, 200), (33, 35)])
def test_result_is_exactly_square(fit: str, size: tuple[int, int]) -> None:
    """No later stage needs to check a size again."""
    pixels = place(scale(scenery(*size), 64, fit, "centre"), (64, 64), RED)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8


def test_picture_of_the_right_size_is_untouched() -> None:
    """Preparing twice is preparing once."""
    image = scenery(64, 64)
    assert np.array_equal(
        place(scale(image, 64, "crop", "centre"), (64, 64), RED), np.asarray(image)
    )


def test_crop_is_pillows_lanczos() -> None:
    """Nothing that lies outside the square bleeds into its edges."""
    image = scenery(200, 120)
    reference = image.crop((40, 0, 160, 120)).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(scale(image, 64, "crop", "centre")), np.asarray(reference))


def test_pad_is_background_around_the_whole_picture() -> None:
    """A wide picture has bars of the stated colour above and below, equally high."""
    pixels = place(
        scale(Image.new("RGB", (200, 100), (0, 0, 255)), 64, "pad", "centre"), (64, 64), RED
    )
    assert (pixels[:16] == RED).all()
    assert (pixels[48:] == RED).all()
    assert (pixels[16:48] == (0, 0, 255)).all()


def test_scaling_keeps_the_colour_profile() -> None:
    """Colours are converted after scaling, so the profile must survive it."""
    image = scenery(100, 100)
    image.info["icc_profile"] = b"profile"
    assert scale(image, 64, "crop", "centre").info["icc_profile"] == b"profile"
