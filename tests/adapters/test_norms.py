"""Norms without the product."""

from __future__ import annotations

import math

import pytest
import torch

from stages.adapters.module import Adapter, LoraPair
from stages.adapters.norms import block_norms, delta_norm, relative_norm
from stages.contracts.errors import WeightsError
from stages.families.noise import keyed_normal


def test_the_norm_is_that_of_the_product(scaled_adapter: Adapter) -> None:
    """trace((B^T B)(A A^T)) equals |B A|^2 for every shape, rank and alpha."""
    for pair in scaled_adapter.modules.values():
        formed = pair.scale * (pair.up.double() @ pair.down.double())
        assert delta_norm(pair) == pytest.approx(torch.linalg.norm(formed).item(), rel=1e-12)


def test_norms_of_small_and_of_no_effect() -> None:
    """A new adapter (B zero) has norm 0, not NaN; alpha 0 and negative alpha are covered."""
    down, up = keyed_normal((4, 6), "a"), keyed_normal((5, 4), "b")
    assert delta_norm(LoraPair(down, torch.zeros(5, 4), 4.0)) == 0.0
    assert delta_norm(LoraPair(down, up, 0.0)) == 0.0
    assert delta_norm(LoraPair(down, up, -4.0)) == delta_norm(LoraPair(down, up, 4.0)) > 0.0


def test_relative_norm_is_the_quotient() -> None:
    """All ones: |W| = sqrt(5 * 6), |Delta W| = 2 sqrt(5 * 6); many rows make no difference."""
    pair = LoraPair(torch.ones(2, 6), torch.ones(5, 2), 2.0)
    assert relative_norm(pair, torch.ones(5, 6, dtype=torch.float16)) == pytest.approx(2.0)
    long = LoraPair(torch.ones(1, 2), torch.ones(3000, 1), 1.0)
    assert relative_norm(long, torch.ones(3000, 2)) == pytest.approx(1.0)


def test_a_block_is_one_long_vector(scaled_adapter: Adapter) -> None:
    """A block's norms are the root of the sum of squares over its own modules."""
    weights = {
        module: keyed_normal((pair.up.shape[0], pair.down.shape[1]), "weight", module)
        for module, pair in scaled_adapter.modules.items()
    }
    norms = block_norms(scaled_adapter, weights.__getitem__)
    assert tuple(norms) == scaled_adapter.blocks
    deltas = [delta_norm(pair) ** 2 for pair in scaled_adapter.modules.values()]
    squares = [weight.double().square().sum().item() for weight in weights.values()]
    assert sum(norm.delta**2 for norm in norms.values()) == pytest.approx(sum(deltas))
    assert sum(norm.weight**2 for norm in norms.values()) == pytest.approx(sum(squares))
    for norm in norms.values():
        assert norm.relative == pytest.approx(norm.delta / norm.weight)
        assert math.isfinite(norm.relative)


def test_zero_base_weights_are_refused() -> None:
    """Nothing is relative to zero; the message names the block."""
    adapter = Adapter({"proj_out": LoraPair(torch.ones(1, 2), torch.ones(3, 1), 1.0)}, {})
    with pytest.raises(WeightsError, match="base: all its base weights are zero"):
        block_norms(adapter, lambda _: torch.zeros(3, 2))
    with pytest.raises(WeightsError, match="a layer: all its base weights are zero"):
        relative_norm(adapter.modules["proj_out"], torch.zeros(3, 2))
