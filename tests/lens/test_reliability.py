"""Split-half agreement, on values whose agreement is known."""

import numpy as np
import pytest

from stages.lens.reliability import split_half_tau
from stages.lens.statistics import rank_tau

RISING = np.arange(6.0)


def test_equal_pictures_agree_wholly() -> None:
    """Where every picture gives the same ranking, so do its halves."""
    assert split_half_tau(np.tile(RISING, (4, 1)), 100, 0) == pytest.approx(1.0)


def test_all_cuts_are_counted_where_there_are_few() -> None:
    """Four pictures have three cuts; the result is the mean of their tau, each by hand."""
    values = np.random.default_rng(0).normal(size=(4, 8))
    cuts = [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])]
    by_hand = [rank_tau(values[a].mean(axis=0), values[b].mean(axis=0)) for a, b in cuts]
    assert split_half_tau(values, 10, 0) == pytest.approx(np.mean(by_hand))
    assert split_half_tau(values, 10, 0) == split_half_tau(values, 10, 1)


def test_noise_lowers_the_agreement() -> None:
    """The more the pictures differ, the less their halves agree; drawn cuts repeat with a seed."""
    noise = np.random.default_rng(1).normal(size=(12, 6))
    taus = [split_half_tau(RISING + scale * noise, 50, 3) for scale in (0.1, 2.0, 20.0)]
    assert taus[0] > taus[1] > taus[2]
    assert taus[1] == split_half_tau(RISING + 2.0 * noise, 50, 3)


def test_one_picture_says_nothing() -> None:
    """Without a second half there is no agreement to speak of."""
    assert split_half_tau(RISING[None], 10, 0) == 0.0


@pytest.mark.parametrize("values", [RISING, np.full((3, 2), np.nan)])
def test_what_is_no_matrix_is_refused(values: np.ndarray) -> None:
    """A missing axis or a missing number is a mistake of the caller's."""
    with pytest.raises(ValueError, match="expected finite values"):
        split_half_tau(values, 10, 0)
