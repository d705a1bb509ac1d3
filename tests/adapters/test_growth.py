"""An adapter at a higher rank is the same adapter, with room to learn."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import (
    LoraShape,
    add_shaped_lora,
    extract_adapter,
    lora_layers,
    lora_parameters,
)
from stages.adapters.growth import plan_growth, put_grown
from stages.families.architecture import Architecture, lora_modules, shared_down
from stages.families.noise import keyed_normal

SEED = 3


def shapes(
    transformer: FluxTransformer2DModel, rank: int, alpha: float, *, shared: bool = False
) -> dict[str, LoraShape]:
    """Return one shape for all modules of the blocks; `shared` A as kohya has them."""
    modules = list(lora_modules(Architecture.from_config(transformer.config), "all"))
    downs = shared_down(modules) if shared else {module: module for module in modules}
    return {module: LoraShape(rank, alpha, downs[module]) for module in modules}


@torch.no_grad()
def trained(transformer: FluxTransformer2DModel, loras: Mapping[str, LoraShape]) -> None:
    """Put an adapter on the model as if it had been trained: no matrix is zero."""
    add_shaped_lora(transformer, loras, SEED)
    for name, matrix in lora_parameters(transformer).items():
        matrix.copy_(keyed_normal(matrix.shape, name))


def grow(transformer: FluxTransformer2DModel, loras: Mapping[str, LoraShape], *key: int) -> None:
    """Bring the model's adapter to the shapes."""
    growth = plan_growth(transformer, loras, SEED, *key)
    put_grown(transformer, loras, growth.of(lora_parameters(transformer)))


def deltas(transformer: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """Return Delta W of every module in float64, in which no sum of the test rounds."""
    found = {}
    for module, pair in extract_adapter(transformer, {}).modules.items():
        found[module] = pair.scale * (pair.up.double() @ pair.down.double())
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [((4, 4.0), (16, 16.0)), ((4, 4.0), (16, 4.0)), ((2, 8.0), (2, 1.0)), ((3, 3.0), (5, 5.0))],
)
def test_delta_is_kept_exactly(
    tiny_flux: FluxTransformer2DModel, before: tuple[int, float], after: tuple[int, float]
) -> None:
    """Where alpha / rank changes by a power of two or not at all, no bit of Delta W does."""
    trained(tiny_flux, shapes(tiny_flux, *before))
    old = {name: matrix.detach().clone() for name, matrix in lora_parameters(tiny_flux).items()}
    expected = deltas(tiny_flux)
    grow(tiny_flux, shapes(tiny_flux, *after))
    got = deltas(tiny_flux)
    assert got.keys() == expected.keys()
    factor = (before[1] / before[0]) / (after[1] / after[0])
    for name, matrix in lora_parameters(tiny_flux).items():
        assert matrix.requires_grad
        if "lora_A" in name:
            assert matrix.shape[0] == after[0]
            assert torch.equal(matrix[: before[0]], old[name])
            assert all(row.any() for row in matrix)
        else:
            assert torch.equal(matrix[:, : before[0]], old[name] * factor)
            assert not matrix[:, before[0] :].any()
    for module, delta in expected.items():
        torch.testing.assert_close(got[module], delta, rtol=1e-15, atol=1e-15)
    (scales,) = {layer.scaling["default"] for layer in lora_layers(tiny_flux).values()}
    assert scales == after[1] / after[0]


def test_other_scales_round_once(tiny_flux: FluxTransformer2DModel) -> None:
    """A third is no float32: B is rounded, and Delta W is off by a unit in its last place."""
    trained(tiny_flux, shapes(tiny_flux, 4, 4.0))
    expected = deltas(tiny_flux)
    grow(tiny_flux, shapes(tiny_flux, 6, 2.0))
    for module, delta in deltas(tiny_flux).items():
        error = (delta - expected[module]).norm() / expected[module].norm()
        assert error < torch.finfo(torch.float32).eps


def test_new_rows_are_drawn_as_the_first_ones(tiny_flux: FluxTransformer2DModel) -> None:
    """Kaiming-uniform: within 1 / sqrt(in), of its spread; by seed, key and module alone."""
    first, other = shapes(tiny_flux, 2, 2.0), shapes(tiny_flux, 34, 34.0)
    trained(tiny_flux, first)
    rows = plan_growth(tiny_flux, other, SEED, "phase", 2).rows
    again = plan_growth(tiny_flux, other, SEED, "phase", 2).rows
    later = plan_growth(tiny_flux, other, SEED, "phase", 3).rows
    assert len(rows) == len(first)
    for name, matrix in rows.items():
        limit = matrix.shape[1] ** -0.5
        assert matrix.shape[0] == 32
        assert matrix.abs().amax() <= limit
        assert float(matrix.std()) == pytest.approx(limit / 3**0.5, rel=0.1)
        assert torch.equal(matrix, again[name])
        assert not torch.equal(matrix, later[name])
    assert len({matrix.sum().item() for matrix in rows.values()}) == len(rows)


def test_a_shared_down_stays_one_parameter(tiny_flux: FluxTransformer2DModel) -> None:
    """Targets of kohya's: as many matrices as before, and the shared ones grow once."""
    trained(tiny_flux, shapes(tiny_flux, 2, 2.0, shared=True))
    before, expected = lora_parameters(tiny_flux).keys(), deltas(tiny_flux)
    grow(tiny_flux, shapes(tiny_flux, 4, 4.0, shared=True), 2)
    assert lora_parameters(tiny_flux).keys() == before
    assert len(before) < 2 * len(expected)
    for module, delta in deltas(tiny_flux).items():
        torch.testing.assert_close(delta, expected[module], rtol=1e-15, atol=1e-15)


def test_what_cannot_grow_is_refused(tiny_flux: FluxTransformer2DModel) -> None:
    """A lower rank, and modules that have no adapter; the model stays as it is."""
    trained(tiny_flux, shapes(tiny_flux, 4, 4.0))
    with pytest.raises(ValueError, match="rank 4 cannot become 2"):
        plan_growth(tiny_flux, shapes(tiny_flux, 2, 2.0), SEED)
    fewer = dict(list(shapes(tiny_flux, 8, 8.0).items())[1:])
    with pytest.raises(ValueError, match="on the modules that it is on"):
        plan_growth(tiny_flux, fewer, SEED)
