"""A LoRA in memory."""

from __future__ import annotations

import pytest
import torch

from stages.adapters.module import Adapter, LoraPair
from stages.contracts.blocks import BlockId


def pair(rank: int = 2, alpha: float = 3.0) -> LoraPair:
    """Return a pair for a layer of 4 inputs and 5 outputs."""
    return LoraPair(torch.ones(rank, 4), torch.ones(5, rank), alpha)


def test_delta_is_alpha_over_rank_times_b_times_a() -> None:
    """The scale is LoRA's own: alpha 3, rank 2 and all ones give 1.5 * 2 everywhere."""
    assert torch.equal(pair().delta(), torch.full((5, 4), 3.0))
    assert pair().scale == 1.5
    assert pair().parameters == 18


@pytest.mark.parametrize(
    ("down", "up"),
    [((2, 4), (5, 3)), ((4,), (5, 4)), ((0, 4), (5, 0)), ((2, 4), (5, 2, 1))],
)
def test_matrices_without_a_product_are_refused(down: tuple[int], up: tuple[int]) -> None:
    """A pair that cannot be multiplied never comes into being; the message shows its shapes."""
    with pytest.raises(ValueError, match="not a LoRA pair: A \\[") as caught:
        LoraPair(torch.ones(down), torch.ones(up), 1.0)
    assert str(list(up)) in str(caught.value)


def test_blocks_are_those_present_in_model_order() -> None:
    """Absent blocks shift no index: the names alone decide."""
    names = (
        "proj_out",
        "single_transformer_blocks.10.proj_out",
        "single_transformer_blocks.9.norm.linear",
        "transformer_blocks.7.attn.to_q",
        "transformer_blocks.7.attn.to_k",
    )
    adapter = Adapter(dict.fromkeys(names, pair()), {})
    assert [str(block) for block in adapter.blocks] == ["double.7", "single.9", "single.10", "base"]


def test_rank_is_the_largest_and_parameters_are_summed() -> None:
    """One number stands for adapters with several ranks; an empty one has rank 0."""
    adapter = Adapter({"proj_out": pair(2), "x_embedder": pair(3)}, {})
    assert adapter.rank == 3
    assert adapter.parameters == 2 * 9 + 3 * 9
    assert Adapter({}, {}).rank == 0
    assert Adapter({}, {}).blocks == ()


def test_block_is_a_type_not_a_text() -> None:
    """Blocks are BlockId everywhere."""
    assert Adapter({"proj_out": pair()}, {}).blocks == (BlockId("base", 0),)
