"""Adapters at a smaller rank: the nearest Delta W, and the error that is said."""

import pytest
import torch

from stages.adapters.kronecker import KroneckerPair
from stages.adapters.module import Adapter
from stages.adapters.pair import LoraPair, Origin
from stages.adapters.reranking import at_rank, require_rankable
from stages.contracts.errors import AdapterError

RANKS = (1, 2, 3)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The squared Frobenius norm of the difference."""
    return float((one.double() - other.double()).square().sum())


@pytest.mark.parametrize("rank", RANKS)
def test_no_pair_of_that_rank_is_nearer(scaled_adapter: Adapter, rank: int) -> None:
    """What is left out is what the singular values of the whole Delta W say, layer by layer."""
    small, error = at_rank(scaled_adapter, rank)
    left_out = whole = 0.0
    for name, pair in scaled_adapter.modules.items():
        values = torch.linalg.svdvals(pair.delta().double()).square()
        assert small.modules[name].rank == min(rank, pair.rank)
        assert distance(small.modules[name].delta(), pair.delta()) == pytest.approx(
            float(values[rank:].sum()), rel=1e-4, abs=1e-6 * float(values.sum())
        )
        left_out, whole = left_out + float(values[rank:].sum()), whole + float(values.sum())
    assert error == pytest.approx((left_out / whole) ** 0.5, rel=1e-5)
    assert small.metadata == scaled_adapter.metadata


def test_layers_that_are_small_enough_stay_as_they_are(scaled_adapter: Adapter) -> None:
    """Nothing is rounded where nothing is to be done."""
    small, error = at_rank(scaled_adapter, 2)
    kept = [name for name, pair in scaled_adapter.modules.items() if pair.rank == 2]
    assert kept
    assert all(small.modules[name] is scaled_adapter.modules[name] for name in kept)
    assert 0.0 < error < 1.0


def test_a_layer_that_does_nothing_is_no_trouble() -> None:
    """B of zeros, as before training."""
    bare = Adapter({"proj_out": LoraPair(torch.ones(4, 8), torch.zeros(8, 4), 4.0)}, {})
    small, error = at_rank(bare, 1)
    assert error == 0.0
    assert torch.equal(small.modules["proj_out"].delta(), torch.zeros(8, 8))


def test_what_cannot_be_smaller_is_refused_at_once(scaled_adapter: Adapter) -> None:
    """All that is wrong in one message, before any picture is drawn."""
    require_rankable(scaled_adapter, {})
    require_rankable(scaled_adapter, {"slim.ranks[0]": 1})
    name = next(iter(scaled_adapter.modules))
    origin = Origin(name, "LoKr", {})
    odd = KroneckerPair(torch.ones(2, 2), torch.ones(2, 2), 1.0, (), origin)
    mixed = Adapter({**scaled_adapter.modules, name: odd}, {})
    with pytest.raises(AdapterError) as caught:
        require_rankable(mixed, {"slim.ranks[0]": 2, "slim.ranks[1]": 64})
    assert f"LoKr and DoRA have no smaller rank: {name}" in str(caught.value)
    assert "slim.ranks[1]: 64 is no less than the adapter's own rank" in str(caught.value)
