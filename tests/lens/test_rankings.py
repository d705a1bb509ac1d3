"""Can a ranking be trusted? Numbers with known answers."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from stages.lens.rankings import (
    Resampling,
    _halves,
    bootstrap_tau,
    friedman_p,
    rank_blocks,
    split_half_tau,
)

RESAMPLING = Resampling(resamples=300, confidence=0.9, seed=0)
UNTIED = np.zeros(5, dtype=bool)


def noisy(spread: float, prompts: int = 4, seeds: int = 3) -> np.ndarray:
    """Values [prompts, seeds, 5] of blocks that are 0, 1, 2, 3, 4 good, with noise."""
    noise = np.random.default_rng(1).normal(size=(prompts, seeds, 5))
    return np.arange(5.0) + spread * noise


def test_clear_values_have_sure_ranks() -> None:
    """Where every picture agrees, so do resamples, halves and the test."""
    values = noisy(0.01)
    ranks = rank_blocks(values, UNTIED, 2, RESAMPLING)
    assert ranks.rank.tolist() == ranks.low.tolist() == ranks.high.tolist() == [5, 4, 3, 2, 1]
    assert ranks.in_top.tolist() == [0, 0, 0, 1, 1]
    assert split_half_tau(values) == pytest.approx(1.0)
    assert bootstrap_tau(values, RESAMPLING) == pytest.approx(1.0)
    assert friedman_p(values) < 1e-6


def test_noise_is_shown_as_noise() -> None:
    """Where blocks do not differ, intervals are wide, halves disagree and the test sees nothing."""
    values = np.random.default_rng(3).normal(size=(6, 2, 5))
    ranks = rank_blocks(values, UNTIED, 2, RESAMPLING)
    assert (ranks.high - ranks.low).min() >= 1
    assert ((ranks.in_top > 0) & (ranks.in_top < 1)).all()
    assert abs(split_half_tau(values)) < 0.5
    assert bootstrap_tau(values, RESAMPLING) < 0.9
    assert friedman_p(values) > 0.05


def test_tied_blocks_share_the_last_rank() -> None:
    """However good their mean is."""
    tied = np.array([True, False, False, False, True])
    ranks = rank_blocks(noisy(0.01), tied, 3, RESAMPLING)
    assert ranks.rank.tolist() == [4.5, 3, 2, 1, 4.5]
    assert ranks.in_top.tolist() == [0, 1, 1, 1, 0]


def test_halves_are_of_prompts_then_of_seeds() -> None:
    """Two prompts that contradict each other have tau -1, however many seeds agree."""
    up, down = np.arange(4.0), -np.arange(4.0)
    values = np.stack([np.stack([up] * 3), np.stack([down] * 3)])
    assert split_half_tau(values) == pytest.approx(-1.0)
    assert split_half_tau(values[:1]) == pytest.approx(1.0)
    assert np.isnan(split_half_tau(values[:1, :1]))


@pytest.mark.parametrize("count", range(2, 15))
def test_halves_are_evenly_spaced_among_all_there_are(count: int) -> None:
    """As if all were listed and thinned to 200; a half is not looked at from both sides."""
    everything = list(combinations(range(count), count // 2))
    if count % 2 == 0:
        everything = everything[: len(everything) // 2]
    assert [*_halves(count)] == everything[:: -(-len(everything) // 200)]


def test_many_prompts_are_split_a_bounded_number_of_times() -> None:
    """There are 6e16 halves of 60 prompts: nobody lists them, and 200 are looked at."""
    halves = [*_halves(60)]
    assert 100 < len(set(halves)) == len(halves) <= 200
    assert {len(set(half)) for half in halves} == {30}
    assert 0.5 < split_half_tau(noisy(1.0, prompts=60, seeds=1)) <= 1.0


def test_one_picture_tells_nothing_of_others() -> None:
    """No tau and no test from a single prompt and seed."""
    values = noisy(0.1, prompts=1, seeds=1)
    assert np.isnan(bootstrap_tau(values, RESAMPLING))
    assert np.isnan(friedman_p(values))
    assert np.isnan(friedman_p(noisy(0.1)[:, :, :2]))


def test_friedman_is_scipys_over_prompts_and_seeds() -> None:
    """Each prompt with each seed is a judge; equal values are no difference."""
    values = noisy(2.0)
    expected = friedmanchisquare(*values.reshape(-1, 5).T).pvalue
    assert friedman_p(values) == pytest.approx(expected)
    assert friedman_p(np.ones((2, 2, 4))) == 1.0
