"""Copies of a picture are found, other pictures are not."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from stages.imaging.hashing import HASH_BITS, near_duplicates, perceptual_hash
from tests.imaging.drawings import scenery


def hash_of(image: Image.Image) -> int:
    """Return a picture's hash."""
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return perceptual_hash(pixels)


def test_copies_in_other_quality_size_and_brightness_are_near() -> None:
    """What a person calls the same picture differs in a few of the 64 bits."""
    original = scenery(256, 256)
    data = io.BytesIO()
    original.save(data, "JPEG", quality=30)
    copies = [
        Image.open(data),
        original.resize((90, 90)),
        ImageEnhance.Brightness(original).enhance(1.1),
    ]
    for copy in copies:
        assert (hash_of(original) ^ hash_of(copy)).bit_count() <= 4


def test_other_pictures_are_far() -> None:
    """Thirty different pictures share no pair within the default limit."""
    hashes = [hash_of(scenery(128, 128, seed)) for seed in range(30)]
    assert near_duplicates(hashes, 4) == []


def test_plain_picture_has_a_fixed_hash() -> None:
    """Where every frequency is zero, rounding errors must not choose the bits."""
    grey = np.full((64, 64, 3), 117, np.uint8)
    below = 0b1111_1111 << 8  # Cb and Cr in four cells: over the lower step, not the upper
    assert perceptual_hash(grey) == (1 << (HASH_BITS - 1)) | below


def test_colour_tells_pictures_of_one_shape_apart() -> None:
    """A robot on green and the same robot on blue are two pictures, though equal in grey."""
    green, blue = (
        np.full((64, 64, 3), colour, np.uint8) for colour in ((60, 130, 40), (70, 90, 230))
    )
    for pixels in (green, blue):
        pixels[16:48, 24:40] = 30
    assert (perceptual_hash(green) ^ perceptual_hash(blue)).bit_count() > 4


def test_all_pairs_within_the_limit_are_named() -> None:
    """Pairs are ordered, and the limit is inclusive."""
    assert near_duplicates([0b0000, 0b0001, 0b0111], 1) == [(0, 1)]
    assert near_duplicates([0b0000, 0b0001, 0b0111], 2) == [(0, 1), (1, 2)]
    assert near_duplicates([0, 2**64 - 1], 63) == []
    assert near_duplicates([], 4) == []
