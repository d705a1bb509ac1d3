"""A LoRA that is on in training and off in pictures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import (
    add_lora,
    attach_adapter,
    detach,
    extract_adapter,
    lora_parameters,
)
from stages.adapters.module import Adapter
from stages.adapters.training_adapter import TrainingAdapter
from stages.contracts.errors import AdapterError

Velocity = Callable[[FluxTransformer2DModel], torch.Tensor]


def fuse(transformer: FluxTransformer2DModel, adapter: Adapter) -> None:
    """Add the adapter's Delta W to the weights themselves."""
    for module, pair in adapter.modules.items():
        transformer.get_submodule(module).weight.data += pair.delta()


def test_on_is_as_if_fused(
    tiny_flux: FluxTransformer2DModel, scaled_adapter: Adapter, velocity: Velocity
) -> None:
    """The output is that of W + (alpha / rank) B A, as ai-toolkit fuses it."""
    base = velocity(tiny_flux)
    TrainingAdapter(tiny_flux, scaled_adapter)
    carried = velocity(tiny_flux)
    other = FluxTransformer2DModel.from_config(tiny_flux.config).eval()
    other.load_state_dict(tiny_flux.state_dict())
    fuse(other, scaled_adapter)
    torch.testing.assert_close(carried, velocity(other), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(base, carried, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_off_is_exactly_the_base(
    tiny_flux: FluxTransformer2DModel,
    scaled_adapter: Adapter,
    velocity: Velocity,
    dtype: torch.dtype,
) -> None:
    """No bit of weight or output is another one, also in 16 bits, and on is on again."""
    tiny_flux.to(dtype)
    weights = {name: value.clone() for name, value in tiny_flux.state_dict().items()}
    base = velocity(tiny_flux)
    helper = TrainingAdapter(tiny_flux, scaled_adapter)
    carried = velocity(tiny_flux)
    with helper.off():
        assert torch.equal(velocity(tiny_flux), base)
    assert torch.equal(velocity(tiny_flux), carried)
    assert not torch.equal(carried, base)
    assert weights.keys() == tiny_flux.state_dict().keys()
    for name, value in tiny_flux.state_dict().items():
        assert torch.equal(value, weights[name])


def test_off_ends_also_after_an_error(
    tiny_flux: FluxTransformer2DModel, adapter: Adapter, velocity: Velocity
) -> None:
    """Pictures that fail do not leave training without the adapter."""
    helper = TrainingAdapter(tiny_flux, adapter)
    carried = velocity(tiny_flux)
    with pytest.raises(RuntimeError, match="no pictures"), helper.off():
        raise RuntimeError("no pictures")
    assert torch.equal(velocity(tiny_flux), carried)


def test_a_lora_beside_it_learns_as_on_the_fused_model(
    tiny_flux: FluxTransformer2DModel,
    scaled_adapter: Adapter,
    modules: list[str],
    velocity: Velocity,
) -> None:
    """Gradients agree with those on fused weights; the trained file holds nothing of the helper."""
    other = FluxTransformer2DModel.from_config(tiny_flux.config).eval().requires_grad_(False)
    other.load_state_dict(tiny_flux.state_dict())
    fuse(other, scaled_adapter)
    TrainingAdapter(tiny_flux, scaled_adapter)
    gradients = []
    for model in (tiny_flux, other):
        add_lora(model, modules, rank=4, alpha=4.0, seed=0)
        velocity(model).square().mean().backward()
        gradients.append([each.grad for each in lora_parameters(model).values()])
    largest = max(gradient.abs().max().item() for gradient in gradients[1])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * largest)
    trained = extract_adapter(tiny_flux, {})
    assert trained.modules.keys() == set(modules)
    assert all(torch.count_nonzero(pair.up) == 0 for pair in trained.modules.values())


def test_it_stays_when_the_trained_lora_goes(
    tiny_flux: FluxTransformer2DModel, adapter: Adapter, velocity: Velocity
) -> None:
    """It lies on the base's own layers, not on PEFT's."""
    TrainingAdapter(tiny_flux, adapter)
    carried = velocity(tiny_flux)
    attach_adapter(tiny_flux, adapter)
    assert not torch.equal(velocity(tiny_flux), carried)
    detach(tiny_flux)
    assert torch.equal(velocity(tiny_flux), carried)


def test_a_misfit_is_refused(
    tiny_flux: FluxTransformer2DModel, adapter: Adapter, velocity: Velocity
) -> None:
    """An adapter of another model is named, and the base is left alone."""
    base = velocity(tiny_flux)
    pair = next(iter(adapter.modules.values()))
    with pytest.raises(AdapterError, match=r"transformer_blocks\.18\.attn\.to_q"):
        TrainingAdapter(tiny_flux, Adapter({"transformer_blocks.18.attn.to_q": pair}, {}))
    assert torch.equal(velocity(tiny_flux), base)
