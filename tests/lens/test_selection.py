"""Orders of blocks and sizes of sets."""

import numpy as np
import pytest

from stages.lens.selection import (
    blocks_for,
    greedy_steps,
    largest_first,
    prefix_sets,
    score_prefixes,
    smallest_passing,
)

# Blocks 0 and 1 do the same: together they bring no more than one of them.
WORTH = np.array([3.0, 3.0, 2.0, 1.0])


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


def test_prefixes_grow_from_none_to_all() -> None:
    """Row k has the first k blocks of the order."""
    assert prefix_sets((2, 0, 1)).astype(int).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [1, 0, 1],
        [1, 1, 1],
    ]


def test_prefix_scores_start_at_zero() -> None:
    """An order has one score more than blocks."""
    order = score_prefixes((0, 1, 2, 3), score)
    assert order.blocks == (0, 1, 2, 3)
    assert order.scores == pytest.approx((0.0, 0.5, 0.5, 5 / 6, 1.0))


def test_greedy_puts_off_what_it_has_already() -> None:
    """The twin of a block that is taken comes last, although it is worth most by itself."""
    steps = list(greedy_steps(largest_first(WORTH), score, candidates=4))
    assert [block for block, _ in steps] == [0, 2, 3, 1]
    assert [value for _, value in steps] == pytest.approx([0.5, 5 / 6, 1.0, 1.0])


def test_one_candidate_is_the_starting_order() -> None:
    """With one candidate greedy has no choice; two see one block further."""
    assert [block for block, _ in greedy_steps((0, 1, 2, 3), score, 1)] == [0, 1, 2, 3]
    assert [block for block, _ in greedy_steps((0, 1, 2, 3), score, 2)] == [0, 2, 3, 1]


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
