"""Intervals and rank agreement."""

import re
from pathlib import Path

import numpy as np
import pytest

from stages.lens.statistics import bootstrap_interval, bootstrap_means, interval, rank_tau

METHOD = (Path(__file__).parents[2] / "docs/method.md").read_text(encoding="utf-8")


def test_interval_brackets_the_mean_and_repeats() -> None:
    """The mean lies inside, and the same seed gives the same interval."""
    values = np.random.default_rng(1).normal(3.0, 1.0, size=(6, 4))
    low, high = bootstrap_interval(values, 500, 0.9, seed=5)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values, 500, 0.9, seed=5)
    assert (low, high) != bootstrap_interval(values, 500, 0.9, seed=6)


def test_interval_covers_as_often_as_it_says() -> None:
    """Over many crossed designs the true mean is inside about as often as the confidence."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        rows, columns = generator.normal(size=(12, 1)), generator.normal(size=(1, 12))
        low, high = bootstrap_interval(rows + columns, 400, 0.9, seed=trial)
        hits += low <= 0.0 <= high
    assert 0.80 <= hits / 200 <= 0.99


def missed(prompts: int, confidence: float) -> float:
    """Return how often 0 is below the interval where prompts are normal around 0 and decide all."""
    drawn = np.random.default_rng(prompts).normal(size=(prompts, 1, 4000)).repeat(2, axis=1)
    low, _ = interval(bootstrap_means(drawn, 1000, seed=0), confidence)
    return float((low > 0.0).mean())


@pytest.mark.parametrize("confidence", [0.95, 0.9])
def test_few_prompts_miss_as_often_as_the_docs_say(confidence: float) -> None:
    """An interval of 95 % from two prompts is missed below by a quarter, not by a fortieth."""
    (header,) = re.findall(r"^\| interval \| it should be \|(.+)\|$", METHOD, re.MULTILINE)
    prompts = [int(re.findall(r"\d+", cell)[0]) for cell in header.split("|")]
    (row,) = re.findall(rf"^\| {confidence:.0%} \|(.+)\|$".replace("%", " %"), METHOD, re.MULTILINE)
    nominal, *stated = [float(cell.strip(" %")) / 100 for cell in row.split("|")]
    assert nominal == pytest.approx((1 - confidence) / 2)
    assert prompts[:2] == [2, 3]
    assert len(stated) == len(prompts) >= 6
    for count, said in zip(prompts, stated, strict=True):
        assert missed(count, confidence) == pytest.approx(said, abs=0.015)


def test_whole_prompts_are_drawn() -> None:
    """Values that differ between prompts only give an interval as wide as the prompts differ."""
    values = np.array([[0.0] * 50, [1.0] * 50])
    assert bootstrap_interval(values, 1000, 0.9, seed=0) == pytest.approx((0.0, 1.0))


def test_one_prompt_and_one_seed_give_one_value() -> None:
    """A single measurement has no spread to show."""
    assert bootstrap_interval([[0.25]], 10, 0.9, seed=0) == (0.25, 0.25)


def test_means_of_many_blocks_use_the_same_draws() -> None:
    """A block measured twice gets the same interval twice, and matches the matrix form."""
    values = np.random.default_rng(2).normal(size=(3, 2))
    means = bootstrap_means(np.stack([values, values], axis=-1), 100, seed=4)
    low, high = interval(means, 0.8)
    assert means.shape == (100, 2)
    assert low[0] == low[1]
    assert high[0] == high[1]
    assert (low[0], high[0]) == pytest.approx(bootstrap_interval(values, 100, 0.8, seed=4))


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0, 2.0], "prompts, seeds"), ([[]], "prompts, seeds"), ([[np.nan]], "finite")],
)
def test_bad_values_are_refused(values: object, message: str) -> None:
    """A vector, an empty matrix and a NaN are refused by name."""
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.asarray(values), 10, 0.9, seed=0)


def test_rank_tau_knows_same_opposite_and_ties() -> None:
    """Same order 1, opposite order -1, all tied 0, and tau-b's value with one tie."""
    assert rank_tau([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert rank_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_tau([1, 2, 3], [5, 5, 5]) == 0.0
    assert rank_tau([1.0], [2.0]) == 0.0
    assert rank_tau([1, 2, 3], [1, 2, 2]) == pytest.approx(2 / np.sqrt(6))


def test_rank_tau_needs_the_same_blocks() -> None:
    """Two rankings of different length are refused."""
    with pytest.raises(ValueError, match="2 and 3 blocks"):
        rank_tau([1, 2], [1, 2, 3])
