"""Every shape becomes the exact square that was asked for, without a stretch or a shift."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stages.imaging.fit import (
    bucket_size,
    crop_box,
    pad_size,
    place,
    salient_box,
    scale,
    upscale_factor,
)
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


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1000, 1000), (1024, 1024)),
        ((4000, 3000), (1152, 896)),
        ((3000, 4000), (896, 1152)),
        ((1920, 1080), (1344, 768)),
        ((3, 1), (1728, 576)),
    ],
)
def test_bucket_is_the_nearest_shape_of_equal_area(
    size: tuple[int, int], bucket: tuple[int, int]
) -> None:
    """Sides are multiples of 64, and turning the picture turns the bucket."""
    assert bucket_size(*size, 1024) == bucket
    assert bucket_size(size[1], size[0], 1024) == bucket[::-1]
    assert bucket[0] * bucket[1] == pytest.approx(1024**2, rel=0.06)


def test_a_bucket_fills_its_shape_without_a_stretch() -> None:
    """A circle stays a circle: cut to the bucket's proportions, then scaled."""
    image = Image.new("RGB", (400, 300), (0, 0, 0))
    ImageDraw.Draw(image).ellipse((150, 100, 250, 200), fill=(255, 255, 255))
    pixels = np.asarray(scale(image, 256, "bucket", "centre"))[..., 0]
    assert pixels.shape == (192, 320)
    rows, columns = np.nonzero(pixels > 127)
    assert np.ptp(columns) == pytest.approx(np.ptp(rows), abs=2)


def test_salient_box_is_as_large_as_the_centre_one() -> None:
    """Focus moves the cut, it does not change its size."""
    image = Image.new("RGB", (300, 100), (90, 90, 90))
    image.paste(scenery(60, 60), (230, 20))
    left, top, right, bottom = salient_box(image, (64, 64))
    assert (right - left, bottom - top, top) == (100, 100, 0)
    assert left >= 150


def test_enlargement_is_known_before_it_is_done() -> None:
    """1 is untouched, above it the picture is blown up."""
    assert upscale_factor(100, 50, 100, "crop") == 2.0
    assert upscale_factor(100, 50, 100, "pad") == 1.0
    assert upscale_factor(640, 640, 256, "bucket") == 0.4
