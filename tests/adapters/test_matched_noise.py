"""Noise that is as large as what an adapter learnt."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.compatibility import linear_shapes
from stages.adapters.matched_noise import matched_noise
from stages.adapters.module import Adapter, LoraPair
from stages.adapters.norms import delta_norm
from tests.sampling.planting import plant_adapter, same_strength, tiny_architecture


def test_every_module_keeps_its_norm_and_nothing_else(tiny_flux: FluxTransformer2DModel) -> None:
    """|Delta W| of each module is the adapter's, and the two have no direction in common."""
    architecture = tiny_architecture()
    strengths = same_strength(architecture.blocks, 0.3)
    adapter = plant_adapter(architecture, linear_shapes(tiny_flux), strengths)
    noise = matched_noise(adapter, seed=1)
    assert list(noise.modules) == list(adapter.modules)
    assert len(noise.modules) == 2 * 14 + 3 * 6
    for module, pair in noise.modules.items():
        learnt = adapter.modules[module]
        assert delta_norm(pair) == pytest.approx(delta_norm(learnt), rel=1e-5)
        assert (pair.rank, pair.alpha) == (learnt.rank, learnt.alpha)
        cosine = torch.nn.functional.cosine_similarity(
            pair.delta().flatten(), learnt.delta().flatten(), dim=0
        )
        assert abs(cosine) < 0.2


def test_draws_are_keyed_on_seed_and_module() -> None:
    """Another seed is another draw; a module's draw does not depend on its neighbours."""
    pair = LoraPair(torch.ones(2, 6), torch.ones(4, 2), 2.0)
    both = matched_noise(Adapter({"proj_out": pair, "x_embedder": pair}, {}), seed=1)
    alone = matched_noise(Adapter({"x_embedder": pair}, {}), seed=1)
    other = matched_noise(Adapter({"x_embedder": pair}, {}), seed=2)
    assert torch.equal(both.modules["x_embedder"].up, alone.modules["x_embedder"].up)
    assert not torch.equal(both.modules["x_embedder"].up, both.modules["proj_out"].up)
    assert not torch.equal(other.modules["x_embedder"].up, alone.modules["x_embedder"].up)


def test_a_block_without_effect_has_noise_without_effect() -> None:
    """Zero weights stay zero."""
    pair = LoraPair(torch.ones(2, 6), torch.zeros(4, 2), 2.0)
    noise = matched_noise(Adapter({"proj_out": pair}, {}), seed=1)
    assert delta_norm(noise.modules["proj_out"]) == 0.0


def test_a_module_without_an_effect_stays_without() -> None:
    """An alpha of 0 switches a module off: there is no size to draw noise of."""
    off = LoraPair(torch.ones(2, 6), torch.ones(4, 2), 0.0)
    (pair,) = matched_noise(Adapter({"proj_out": off}, {}), seed=1).modules.values()
    assert delta_norm(pair) == 0.0
