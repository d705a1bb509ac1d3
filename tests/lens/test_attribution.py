"""Shares and set scores, on velocities whose answer is known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from stages.contracts.errors import AdapterError
from stages.lens.attribution import block_shares, measure_effect, score_sets
from stages.lens.questions import Ask, ask_here

PROBES, BLOCKS, NUMBERS = 5, 3, 7
PARTS = torch.randn(PROBES, BLOCKS, NUMBERS, generator=torch.Generator().manual_seed(0))
BASE = torch.randn(PROBES, NUMBERS, generator=torch.Generator().manual_seed(1))


def made_of(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Ask:
    """A velocity v(a) = base + change(parts of the probes [B, blocks, numbers], gates)."""
    return ask_here(lambda indices, gates: BASE[indices] + change(PARTS[indices], gates))


ADDITIVE = made_of(lambda parts, gates: (gates[..., None] * parts).sum(dim=1))
TOGETHER = made_of(lambda parts, gates: (gates[:, 0] * gates[:, 1])[:, None] * parts[:, 0])
CURVED = made_of(lambda parts, gates: (torch.sin(gates * 2)[..., None] * parts).sum(dim=1))


def exact_shares() -> np.ndarray:
    """Shares [probes, blocks] of the additive velocity: each part's component along the whole."""
    whole = PARTS.sum(dim=1).double()
    along = torch.einsum("pbn,pn->pb", PARTS.double(), whole)
    return (along / whole.square().sum(dim=1, keepdim=True)).numpy()


def test_additive_parts_get_their_component() -> None:
    """Without interactions a share is the block's own part, whatever the nodes."""
    shares = block_shares(measure_effect(ADDITIVE, PROBES, BLOCKS, 2), nodes=1, batch=2)
    np.testing.assert_allclose(shares, exact_shares(), atol=1e-6)


def test_blocks_that_only_work_together_share_alike() -> None:
    """Two blocks whose product acts get a half each, the third nothing."""
    shares = block_shares(measure_effect(TOGETHER, PROBES, BLOCKS, 5), nodes=2, batch=5)
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0.0]] * PROBES, atol=1e-6)


def test_shares_are_complete_with_enough_nodes() -> None:
    """Acceptance 7: shares sum to 1 but for the quadrature, whose error falls with the nodes."""
    effect = measure_effect(CURVED, PROBES, BLOCKS, 5)
    errors = [np.abs(block_shares(effect, nodes, 5).sum(axis=1) - 1.0).max() for nodes in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_batches_do_not_matter() -> None:
    """The same shares and scores, however the probes are cut into batches."""
    sets = np.array([[True, False, True], [False, True, False]])
    whole, cut = (measure_effect(CURVED, PROBES, BLOCKS, batch) for batch in (5, 2))
    np.testing.assert_allclose(block_shares(whole, 3, 5), block_shares(cut, 3, 2), atol=1e-6)
    np.testing.assert_allclose(score_sets(whole, sets, 10), score_sets(cut, sets, 3), atol=1e-6)


def test_set_scores_are_zero_without_and_one_with_all_blocks() -> None:
    """P is 0 for the empty set, 1 for the whole one, and sums of parts if nothing interacts."""
    sets = np.array([[False] * 3, [True] * 3, [True, True, False]])
    scores = score_sets(measure_effect(ADDITIVE, PROBES, BLOCKS, 4), sets, 4)
    expected = exact_shares()[:, :2].sum(axis=1).mean()
    np.testing.assert_allclose(scores, [0.0, 1.0, expected], atol=1e-6)


def test_no_effect_is_refused() -> None:
    """Where the LoRA changes nothing there is nothing to share."""
    with pytest.raises(AdapterError, match="does not change the velocity"):
        measure_effect(made_of(lambda parts, _: 0 * parts[:, 0]), PROBES, BLOCKS, 5)
    with pytest.raises(AdapterError, match="not finite"):
        measure_effect(made_of(lambda parts, _: parts[:, 0] / 0), PROBES, BLOCKS, 5)
