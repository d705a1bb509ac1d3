"""What sets of blocks lose, on velocities whose answer is known."""

import numpy as np
import pytest
import torch

from stages.lens.attribution import block_shares, measure_effect, score_recoveries
from stages.lens.interaction import lost, measure_interaction, refit_strengths, removal_order
from stages.lens.questions import Ask
from tests.lens.test_attribution import ADDITIVE, BLOCKS, PROBES, TOGETHER, made_of

RANDOM = np.random.default_rng(0).normal(size=(6, 4))
PRODUCTS = RANDOM @ RANDOM.T
SAME = np.ones(6)


def test_guesses_are_exact_without_interaction() -> None:
    """Where the blocks' parts just add up, the guess of every set is what is truly lost."""
    effect = measure_effect(ADDITIVE, PROBES, BLOCKS, 5)
    products = np.mean([*measure_interaction(effect, 4)], axis=0)
    rows = np.array([[1, 0, 1], [0, 1, 0], [0.5, 1.5, 0]], dtype=float)
    truth = 1.0 - score_recoveries(effect, rows, 4)
    np.testing.assert_allclose([lost(products, row) for row in rows], truth, atol=1e-5)


def test_two_that_only_work_together_count_half_each() -> None:
    """Alone neither does anything, without either all is lost: each is half of the whole."""
    effect = measure_effect(TOGETHER, PROBES, BLOCKS, 5)
    (first, *_) = measure_interaction(effect, 6)
    np.testing.assert_allclose(first, [[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]], atol=1e-5)


def test_batches_do_not_matter() -> None:
    """The same products, however many velocities run at once."""
    effect = measure_effect(ADDITIVE, PROBES, BLOCKS, 5)
    for one, other in zip(
        measure_interaction(effect, 1), measure_interaction(effect, 6), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_blocks_that_cancel_cost_nothing_together() -> None:
    """Two large blocks that undo each other are the first pair to go, though each alone is dear."""
    parts = np.array([[3.0, 0.0], [-3.0, 0.0], [3.1, 0.0], [0.0, 3.2]])
    products = parts @ parts.T
    assert lost(products, [0, 0, 1, 1]) == 0.0
    order = removal_order(products, np.ones(4), None)
    assert {order[2], order[3]} == {0, 1} or {order[2], order[3]} == {1, 2}
    assert order[0] == 3


def test_a_price_per_byte() -> None:
    """Of two equal blocks the dearer goes first; with equal prices the later one."""
    products = np.eye(3)
    assert removal_order(products, np.array([2.0, 1.0, 1.0]), None)[-1] == 0
    assert removal_order(products, np.ones(3), None) == (0, 1, 2)


def test_a_price_does_not_excuse_harm() -> None:
    """Block 0 is too dear to keep; 1 and 2 undid it, and now harm alike: the dearer goes first."""
    parts = np.array([[5.0, 0.0], [-3.0, 0.0], [-3.0, 0.0], [0.0, 10.0]])
    prices = np.array([100.0, 10.0, 1.0, 1.0])
    assert removal_order(parts @ parts.T, prices, None) == (3, 2, 1, 0)


def test_the_order_is_greedy_on_the_guess() -> None:
    """Each step drops the block without which the guess is smallest, by hand."""
    kept = np.ones(6)
    for dropped in reversed(removal_order(PRODUCTS, SAME, None)):
        guesses = [
            lost(PRODUCTS, np.where(np.arange(6) == block, 0.0, kept)) if kept[block] else np.inf
            for block in range(6)
        ]
        assert guesses[dropped] == pytest.approx(min(guesses))
        kept[dropped] = 0.0


def test_refitted_strengths_are_the_best_nearby() -> None:
    """No small change of the kept strengths makes loss and penalty smaller; the others stay 0."""
    kept = np.array([True, True, False, True, False, True])
    strengths = refit_strengths(PRODUCTS, kept, 0.5)
    assert (strengths[~kept] == 0.0).all()
    penalty = 0.5 * np.trace(PRODUCTS) / 6

    def cost(row: np.ndarray) -> float:
        return lost(PRODUCTS, row) + penalty * float(((1.0 - row[kept]) ** 2).sum())

    for block in np.flatnonzero(kept):
        for step in (-0.01, 0.01):
            assert cost(strengths) < cost(strengths + step * (np.arange(6) == block))
    assert lost(PRODUCTS, strengths) < lost(PRODUCTS, kept)


def test_a_block_that_is_kept_has_a_strength() -> None:
    """One that would be rounded to 0.000 would be counted as kept and be missing in the file."""
    products = np.array([[1.0, -1.025], [-1.025, 4.0]])
    kept = np.array([True, False])
    assert 1.0 + products[0, 1] / (1.0 + 0.01 * 2.5) == pytest.approx(0.0, abs=1e-12)
    assert refit_strengths(products, kept, 0.01).tolist() == [0.001, 0.0]


def test_a_stiff_ridge_keeps_them_at_one() -> None:
    """The larger the ridge, the closer the strengths are to 1, and nothing dropped moves none."""
    kept = np.array([True, True, False, True, True, True])
    moves = [np.abs(refit_strengths(PRODUCTS, kept, ridge)[kept] - 1.0).max() for ridge in (1, 1e6)]
    assert moves[0] > 0.01 > moves[1] == 0.0
    np.testing.assert_array_equal(refit_strengths(PRODUCTS, np.ones(6, dtype=bool), 1.0), 1.0)


TWINS = made_of(lambda parts, gates: _either(gates)[:, None] * parts[:, 0])
UNDONE = made_of(
    lambda parts, gates: (gates[:, :1] - gates[:, 1:2]) * parts[:, 0] + gates[:, 2:] * parts[:, 2]
)


def _either(gates: torch.Tensor) -> torch.Tensor:
    return 1.0 - (1.0 - gates[:, 0]) * (1.0 - gates[:, 1])


@pytest.mark.parametrize(
    ("velocity", "alone", "without"), [(TOGETHER, 0.0, 0.0), (TWINS, 1.0, 1.0)]
)
def test_pairs_that_shares_cannot_tell_apart(velocity: Ask, alone: float, without: float) -> None:
    """docs/lens.md: halves of the share and an interaction of 1/4, whether both are needed or one.

    What one recovers alone, and what is left without it, tells which of the two it is.
    """
    effect = measure_effect(velocity, PROBES, BLOCKS, 5)
    np.testing.assert_allclose(block_shares(effect, 2, 5).mean(axis=0), [0.5, 0.5, 0], atol=1e-5)
    products = np.mean([*measure_interaction(effect, 6)], axis=0)
    np.testing.assert_allclose(products[:2, :2], 0.25, atol=1e-5)
    rows = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    np.testing.assert_allclose(score_recoveries(effect, rows, 5), [alone, without], atol=1e-5)


def test_a_block_that_undoes_another() -> None:
    """docs/lens.md: shares of s and -s, much alone and much without, and a negative interaction.

    Both can go together at no loss.
    """
    effect = measure_effect(UNDONE, PROBES, BLOCKS, 5)
    shares = block_shares(effect, 2, 5)
    np.testing.assert_allclose(shares[:, 0], -shares[:, 1], atol=1e-5)
    assert (np.abs(shares[:, 0]) > 0.01).any()
    products = np.mean([*measure_interaction(effect, 6)], axis=0)
    assert products[0, 1] == pytest.approx(-products[0, 0], rel=1e-4)
    rows = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    one_dropped, both_dropped = score_recoveries(effect, rows, 5)
    assert both_dropped == pytest.approx(1.0)
    assert one_dropped < 0.9
