"""Structure and direction, against another implementation and by hand."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from stages.imaging.similarity import direction, ssim

RANDOM = np.random.default_rng(0)


def noise(side: int = 48) -> np.ndarray:
    """A picture of noise."""
    return RANDOM.integers(0, 256, (side, side, 3), dtype=np.uint8)


def grey(level: int) -> np.ndarray:
    """A picture of one grey."""
    return np.full((32, 32, 3), level, dtype=np.uint8)


def test_ssim_is_that_of_scikit_image() -> None:
    """Wang's window and constants, to the last digits."""
    a = np.cumsum(noise() // 64, axis=0).clip(0, 255).astype(np.uint8)
    for b in (noise(), (a // 2 + 30).astype(np.uint8), np.roll(a, 1, axis=1)):
        theirs = structural_similarity(
            a,
            b,
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim(a, b) == pytest.approx(theirs, abs=1e-10)


def test_ssim_knows_equal_pictures_and_refuses_small_ones() -> None:
    """1 for the picture itself; a window must fit in."""
    a = noise()
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, 255 - a) < 0.0
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(a[:10], a[:10])
    with pytest.raises(ValueError, match="different size"):
        ssim(a, a[:40])


def test_direction_is_the_part_of_the_way() -> None:
    """0 at the start, 1 at the end, more beyond, negative on the other side."""
    none, full = grey(100), grey(140)
    levels = {100: 0.0, 120: 0.5, 140: 1.0, 160: 1.5, 80: -0.5}
    assert {level: direction(grey(level), none, full) for level in levels} == levels


def test_what_lies_across_does_not_count() -> None:
    """A change at right angles to the way leaves the direction as it is."""
    none, full = grey(100), grey(100)
    full[:, :16] = 140
    variant = full.copy()
    variant[:, 16:] = 250
    assert direction(variant, none, full) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no direction"):
        direction(variant, none, none)
