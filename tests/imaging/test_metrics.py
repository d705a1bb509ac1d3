"""MSE and recovery are what every number of the lens rests on."""

from __future__ import annotations

import numpy as np
import pytest

from stages.imaging.metrics import LARGEST_MSE, mse, recovery, recovery_of_errors


def grey(level: int) -> np.ndarray:
    """Return a grey picture."""
    return np.full((4, 6, 3), level, dtype=np.uint8)


def test_black_and_white_are_the_farthest_apart() -> None:
    """uint8 subtraction would wrap around and give 1 here."""
    assert mse(grey(0), grey(255)) == mse(grey(255), grey(0)) == LARGEST_MSE == 65025.0


def test_mse_is_the_mean_over_pixels_and_channels() -> None:
    """One channel of one pixel counts as one of 72 numbers."""
    changed = grey(10)
    changed[0, 0, 0] = 13
    assert mse(grey(10), changed) == pytest.approx(9 / 72)


@pytest.mark.parametrize(("level", "expected"), [(100, 1.0), (0, 0.0), (50, 0.75), (250, -1.25)])
def test_recovery_runs_from_none_to_full(level: int, expected: float) -> None:
    """1 is the full LoRA's picture, 0 as far off as the base model's, below 0 is farther."""
    assert recovery(grey(level), none=grey(0), full=grey(100)) == pytest.approx(expected)


def test_recovery_needs_an_effect() -> None:
    """A LoRA that changes nothing has no recovery, neither 0 nor 1."""
    with pytest.raises(ValueError, match="changes nothing"):
        recovery(grey(1), grey(5), grey(5))
    with pytest.raises(ValueError, match="not defined"):
        recovery_of_errors(0.0, 0.0)


def test_pictures_of_other_size_or_kind_are_refused() -> None:
    """Broadcasting would compare them in silence."""
    with pytest.raises(ValueError, match="different size"):
        mse(grey(0), np.zeros((4, 5, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="expected RGB uint8"):
        mse(grey(0), np.zeros((4, 6, 3), dtype=np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected RGB uint8"):
        mse(grey(0)[:, :, 0], grey(0))
