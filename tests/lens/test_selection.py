"""Orders of blocks and sizes of sets."""

import numpy as np
import pytest

from stages.lens.selection import (
    blocks_for,
    for_their_prices,
    greedy_steps,
    largest_first,
    prefix_sets,
    shrinking_steps,
    smallest_passing,
)

# Blocks 0 and 1 do the same: together they bring no more than one of them.
WORTH = np.array([3.0, 3.0, 2.0, 1.0])
SAME = np.ones(4)


def score(sets: np.ndarray) -> np.ndarray:
    """Sum of the blocks' worth, the twins counted once."""
    twins = sets[:, 0] & sets[:, 1]
    return (sets @ WORTH - 3.0 * twins) / 6.0


def test_largest_first_keeps_the_model_order_of_equals() -> None:
    """Falling values, ties as they come."""
    assert largest_first([1.0, 3.0, 3.0, -2.0]) == (1, 2, 0, 3)


@pytest.mark.parametrize(("amount", "expected"), [(0.5, 1), (0.6, 2), (1.0, 3), (1.5, 3)])
def test_blocks_for_counts_the_largest(amount: float, expected: int) -> None:
    """How many of the largest shares make up an amount; all when the amount is out of reach."""
    assert blocks_for([0.2, 0.5, 0.3], amount) == expected


def test_harm_is_not_excused_by_a_high_price() -> None:
    """Of two blocks that harm alike the dearer one is worse, as it is of two that help alike."""
    prices = np.array([10.0, 1.0])
    assert for_their_prices([0.5, 0.5], prices).tolist() == [0.05, 0.5]
    assert for_their_prices([-0.5, -0.5], prices).tolist() == [-5.0, -0.5]


def test_the_dearer_of_two_that_harm_goes_first() -> None:
    """Block 2 helps; 0 and 1 harm alike, and 0 costs ten times as much."""
    prices, worth = np.array([10.0, 1.0, 1.0]), np.array([-0.1, -0.1, 1.0])
    assert [*shrinking_steps(lambda kept: worth * kept, prices)] == [0, 1, 2]
    assert [*greedy_steps((0, 1, 2), lambda sets: sets @ worth, 3, prices)] == [2, 1, 0]


def test_prefixes_grow_from_none_to_all() -> None:
    """Row k has the first k blocks of the order."""
    assert prefix_sets((2, 0, 1)).astype(int).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [1, 0, 1],
        [1, 1, 1],
    ]


def test_greedy_puts_off_what_it_has_already() -> None:
    """The twin of a block that is taken comes last, although it is worth most by itself."""
    assert [*greedy_steps(largest_first(WORTH), score, 4, SAME)] == [0, 2, 3, 1]


def test_one_candidate_is_the_starting_order() -> None:
    """With one candidate greedy has no choice; two see one block further."""
    assert [*greedy_steps((0, 1, 2, 3), score, 1, SAME)] == [0, 1, 2, 3]
    assert [*greedy_steps((0, 1, 2, 3), score, 2, SAME)] == [0, 2, 3, 1]


def test_greedy_counts_what_a_block_costs() -> None:
    """A block that is worth three but costs four comes after one worth two that costs one."""
    prices = np.array([4.0, 4.0, 1.0, 1.0])
    assert [*greedy_steps(largest_first(WORTH), score, 4, prices)] == [2, 3, 0, 1]


def test_shrinking_measures_anew() -> None:
    """A block whose twin was dropped is worth more than before, and goes later than at first."""

    def measure(kept: np.ndarray) -> np.ndarray:
        worth = np.array([1.5, 1.4, 2.0, 1.6])
        if not kept[1]:
            worth[0] = 3.0
        return worth

    assert [*shrinking_steps(measure, SAME)] == [1, 3, 2, 0]
    assert [*shrinking_steps(lambda _: WORTH, np.array([3.0, 1.0, 1.0, 1.0]))] == [3, 0, 2, 1]


@pytest.mark.parametrize("at_once", [1, 3, 60])
@pytest.mark.parametrize("smallest", [1, 2, 28, 56, 57])
def test_smallest_passing_finds_the_step(smallest: int, at_once: int) -> None:
    """The size from which on all pass is found, without asking for the largest."""
    asked: list[int] = []

    def passing(sizes: list[int]) -> list[bool]:
        assert 0 < len(sizes) <= at_once
        asked.extend(sizes)
        return [size >= smallest for size in sizes]

    assert smallest_passing(57, at_once, passing) == smallest
    assert len(asked) == len(set(asked))
    assert set(asked) <= set(range(1, 57))
    if at_once == 1:
        assert len(asked) <= 6


def test_one_block_needs_no_question() -> None:
    """An adapter with one block has one size."""
    assert smallest_passing(1, 4, lambda _: pytest.fail("asked")) == 1
