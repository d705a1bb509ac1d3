"""Adapters on models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model

from stages.adapters import attach
from stages.adapters.attach import (
    ADAPTER_NAME,
    add_lora,
    attach_adapter,
    detach,
    extract_adapter,
    lora_layers,
    lora_parameters,
)
from stages.adapters.module import Adapter
from stages.contracts.errors import AdapterError
from stages.families.architecture import Architecture, lora_modules

Same = Callable[[Adapter, Adapter], None]
Velocity = Callable[[FluxTransformer2DModel], torch.Tensor]


def test_what_is_attached_is_extracted(
    tiny_flux: FluxTransformer2DModel, scaled_adapter: Adapter, same: Same
) -> None:
    """Every bit and every alpha survives the model, in exactly the adapter's modules."""
    attach_adapter(tiny_flux, scaled_adapter)
    same(extract_adapter(tiny_flux, scaled_adapter.metadata), scaled_adapter)
    for module, pair in scaled_adapter.modules.items():
        layer = lora_layers(tiny_flux)[module]
        assert layer.r[ADAPTER_NAME] == pair.rank
        assert layer.scaling[ADAPTER_NAME] == pair.scale


def test_merged_weights_are_w_plus_scale_b_a(
    tiny_flux: FluxTransformer2DModel, scaled_adapter: Adapter
) -> None:
    """PEFT's own merge, the reference, gives W + (alpha / rank) B A."""
    bases = {
        module: tiny_flux.get_submodule(module).weight.clone() for module in scaled_adapter.modules
    }
    attach_adapter(tiny_flux, scaled_adapter)
    for module, layer in lora_layers(tiny_flux).items():
        layer.merge()
        expected = bases[module] + scaled_adapter.modules[module].delta()
        torch.testing.assert_close(layer.get_base_layer().weight, expected)


def test_the_output_is_that_of_merged_weights(
    tiny_flux: FluxTransformer2DModel, scaled_adapter: Adapter, velocity: Velocity
) -> None:
    """The adapter acts as its Delta W does, and it does act."""
    base = velocity(tiny_flux)
    attach_adapter(tiny_flux, scaled_adapter)
    attached = velocity(tiny_flux)
    detach(tiny_flux)
    for module, pair in scaled_adapter.modules.items():
        tiny_flux.get_submodule(module).weight.data += pair.delta()
    torch.testing.assert_close(velocity(tiny_flux), attached, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(base, attached, atol=1e-3)


def test_detach_gives_the_base_model_back(
    tiny_flux: FluxTransformer2DModel, adapter: Adapter, velocity: Velocity
) -> None:
    """Same layers, same output bits, and the next adapter can come; twice does no harm."""
    names = [name for name, _ in tiny_flux.named_parameters()]
    base = velocity(tiny_flux)
    attach_adapter(tiny_flux, adapter)
    detach(tiny_flux)
    detach(tiny_flux)
    assert [name for name, _ in tiny_flux.named_parameters()] == names
    assert torch.equal(velocity(tiny_flux), base)
    assert not any(parameter.requires_grad for parameter in tiny_flux.parameters())
    attach_adapter(tiny_flux, adapter)
    assert lora_layers(tiny_flux).keys() == adapter.modules.keys()
    assert not any(module.training for module in tiny_flux.modules())


def test_an_attached_adapter_is_frozen_and_a_new_one_trains(
    tiny_flux: FluxTransformer2DModel, adapter: Adapter
) -> None:
    """Only the matrices of a new LoRA have gradients, never the base."""
    attach_adapter(tiny_flux, adapter)
    assert not any(parameter.requires_grad for parameter in tiny_flux.parameters())
    detach(tiny_flux)
    tiny_flux.requires_grad_(True)
    add_lora(tiny_flux, list(adapter.modules), rank=2, alpha=2.0, seed=0)
    trainable = {id(each) for each in tiny_flux.parameters() if each.requires_grad}
    assert trainable == {id(each) for each in lora_parameters(tiny_flux).values()}
    assert len(trainable) == 2 * len(adapter.modules)


def test_a_new_lora_changes_nothing_and_learns(
    tiny_flux: FluxTransformer2DModel, modules: list[str], velocity: Velocity
) -> None:
    """B is zero, so the output is the base's bit for bit; the gradient reaches every B."""
    base = velocity(tiny_flux)
    add_lora(tiny_flux, modules, rank=4, alpha=2.0, seed=0)
    output = velocity(tiny_flux)
    assert torch.equal(output, base)
    output.square().sum().backward()
    for layer in lora_layers(tiny_flux).values():
        assert torch.count_nonzero(layer.lora_B[ADAPTER_NAME].weight.grad) > 0
    adapter = extract_adapter(tiny_flux, {})
    assert adapter.modules.keys() == set(modules)
    for pair in adapter.modules.values():
        assert (pair.rank, pair.alpha) == (4, 2.0)
        assert torch.count_nonzero(pair.up) == 0


def test_a_is_kaiming_uniform(tiny_flux: FluxTransformer2DModel) -> None:
    """With a = sqrt(5) the bound is 1 / sqrt(inputs), as in LoRA's code and in PEFT."""
    add_lora(tiny_flux, ["proj_out"], rank=64, alpha=64.0, seed=0)
    down = extract_adapter(tiny_flux, {}).modules["proj_out"].down
    bound = down.shape[1] ** -0.5
    assert 0.98 * bound < down.abs().max().item() <= bound
    assert down.var().item() == pytest.approx(bound**2 / 3, rel=0.1)


def test_the_start_depends_on_seed_and_name_alone(tiny_flux: FluxTransformer2DModel) -> None:
    """Neither order nor company nor torch's global generator changes A; the seed does."""
    modules = list(lora_modules(Architecture.from_config(tiny_flux.config), "all"))
    starts = []
    for chosen, seed in ((modules, 1), (modules[::-1], 1), (modules[5:9], 1), (modules, 2)):
        state = torch.random.get_rng_state()
        add_lora(tiny_flux, chosen, rank=3, alpha=3.0, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        starts.append(extract_adapter(tiny_flux, {}).modules)
        detach(tiny_flux)
    first, reverse, few, other = starts
    for module in modules[5:9]:
        assert torch.equal(first[module].down, reverse[module].down)
        assert torch.equal(first[module].down, few[module].down)
        assert not torch.equal(first[module].down, other[module].down)
    assert not torch.equal(first[modules[0]].down, first[modules[1]].down)


@pytest.mark.parametrize(
    "module", ["proj_out", "single_transformer_blocks.1.proj_out", "transformer_blocks.1.ff.net.2"]
)
def test_a_name_means_one_layer(tiny_flux: FluxTransformer2DModel, module: str) -> None:
    """PEFT's suffix search takes `proj_out` for all of them; ours takes the one that is named."""
    add_lora(tiny_flux, [module], rank=2, alpha=2.0, seed=0)
    assert list(lora_layers(tiny_flux)) == [module]


def test_rank_and_alpha_of_one_layer_stay_there(
    tiny_flux: FluxTransformer2DModel, full_adapter: Adapter, same: Same
) -> None:
    """The final proj_out has its own rank and alpha; those of the single blocks keep theirs."""
    rank_one = full_adapter.modules["proj_out"]
    odd = type(rank_one)(rank_one.down[:1], rank_one.up[:, :1], 7.0)
    adapter = Adapter({**full_adapter.modules, "proj_out": odd}, {})
    attach_adapter(tiny_flux, adapter)
    same(extract_adapter(tiny_flux, {}), adapter)


@pytest.mark.parametrize(("targets", "count"), [("all", 46), ("attention", 25)])
def test_the_asked_number_of_layers_is_found(
    tiny_flux: FluxTransformer2DModel, targets: str, count: int
) -> None:
    """2 x 14 + 3 x 6 layers for `all`, 2 x 8 + 3 x 3 for `attention`."""
    modules = lora_modules(Architecture.from_config(tiny_flux.config), targets)
    add_lora(tiny_flux, modules, rank=1, alpha=1.0, seed=0)
    assert len(lora_layers(tiny_flux)) == count
    assert lora_layers(tiny_flux).keys() == set(modules)


def test_a_wrong_number_of_layers_is_an_error(
    tiny_flux: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should PEFT ever match other layers than asked, nothing stays on the model."""
    monkeypatch.setattr(attach, "exact_config", lambda pairs: {"target_modules": list(pairs)})
    with pytest.raises(RuntimeError, match="LoRA on 4 layers instead of 1"):
        add_lora(tiny_flux, ["proj_out"], rank=1, alpha=1.0, seed=0)
    assert not lora_layers(tiny_flux)


def test_the_adapter_is_float32_on_a_bfloat16_base(
    tiny_flux: FluxTransformer2DModel, adapter: Adapter, same: Same, velocity: Velocity
) -> None:
    """PEFT would cast the adapter down; ours stays exact and the model's dtype stays bfloat16."""
    tiny_flux.to(torch.bfloat16)
    attach_adapter(tiny_flux, adapter)
    assert {each.dtype for each in lora_parameters(tiny_flux).values()} == {torch.float32}
    same(extract_adapter(tiny_flux, adapter.metadata), adapter)
    assert tiny_flux.dtype == torch.bfloat16
    assert velocity(tiny_flux).dtype == torch.bfloat16
    seen = []
    layer = next(iter(lora_layers(tiny_flux).values()))
    layer.lora_A[ADAPTER_NAME].register_forward_hook(lambda _, i, o: seen.append((i[0], o)))
    velocity(tiny_flux)
    assert {tensor.dtype for pair in seen for tensor in pair} == {torch.float32}


def test_the_traps_are_there(tiny_flux: FluxTransformer2DModel) -> None:
    """What we design out: PEFT takes `proj_out` for four layers, and casts to the base's dtype."""
    tiny_flux.to(torch.bfloat16)
    inject_adapter_in_model(LoraConfig(target_modules=["proj_out"]), tiny_flux, ADAPTER_NAME)
    assert len(lora_layers(tiny_flux)) == 4
    assert {each.dtype for each in lora_parameters(tiny_flux).values()} == {torch.bfloat16}


def test_parameters_have_the_names_of_the_file(
    tiny_flux: FluxTransformer2DModel, modules: list[str]
) -> None:
    """Optimiser state and checkpoints use one name for one matrix."""
    add_lora(tiny_flux, modules, rank=2, alpha=2.0, seed=0)
    names = {
        f"transformer.{module}.lora_{side}.weight" for module in modules for side in ("A", "B")
    }
    assert lora_parameters(tiny_flux).keys() == names


def test_the_caller_keeps_its_tensors(
    tiny_flux: FluxTransformer2DModel, full_adapter: Adapter
) -> None:
    """Training on, or scaling, the model's matrices leaves the Adapter as it was, and back."""
    before = full_adapter.modules["proj_out"].up.clone()
    attach_adapter(tiny_flux, full_adapter)
    extracted = extract_adapter(tiny_flux, {})
    for parameter in lora_parameters(tiny_flux).values():
        parameter.data.zero_()
    assert torch.equal(full_adapter.modules["proj_out"].up, before)
    assert torch.equal(extracted.modules["proj_out"].up, before)


def test_a_misfit_is_refused_and_leaves_the_model_alone(
    tiny_flux: FluxTransformer2DModel, full_adapter: Adapter
) -> None:
    """Unknown modules and wrong shapes are an AdapterError before PEFT is asked."""
    pair = full_adapter.modules["proj_out"]
    stranger = Adapter({"transformer_blocks.7.attn.to_q": pair, "context_embedder": pair}, {})
    with pytest.raises(AdapterError, match=r"transformer_blocks\.7\.attn\.to_q") as caught:
        attach_adapter(tiny_flux, stranger)
    assert "differ: context_embedder" in str(caught.value)
    with pytest.raises(AdapterError, match="not in the base model: nothing"):
        add_lora(tiny_flux, ["nothing"], rank=1, alpha=1.0, seed=0)
    assert not lora_layers(tiny_flux)


def test_one_adapter_at_a_time(tiny_flux: FluxTransformer2DModel, full_adapter: Adapter) -> None:
    """A second adapter, an empty one and a name given twice are refused."""
    with pytest.raises(ValueError, match="the adapter has no modules"):
        attach_adapter(tiny_flux, Adapter({}, {}))
    for modules in ([], ["proj_out", "proj_out"]):
        with pytest.raises(ValueError, match="each only once"):
            add_lora(tiny_flux, modules, rank=1, alpha=1.0, seed=0)
    attach_adapter(tiny_flux, full_adapter)
    with pytest.raises(ValueError, match="carries an adapter already; call detach first"):
        attach_adapter(tiny_flux, full_adapter)
    with pytest.raises(ValueError, match="carries an adapter already; call detach first"):
        add_lora(tiny_flux, ["proj_out"], rank=1, alpha=1.0, seed=0)
