"""Which layers a run trains, on the real shapes of FLUX.1 and Flex.1-alpha."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import (
    ADAPTER_NAME,
    LoraShape,
    add_shaped_lora,
    extract_adapter,
    lora_layers,
    lora_parameters,
)
from stages.adapters.module import Adapter
from stages.contracts.errors import ParamsError
from stages.contracts.params import BlockSetting, TrainParams
from stages.encoding.encoded import Encoded
from stages.families.architecture import Architecture, block_of, shared_down
from stages.families.noise import keyed_normal
from stages.training.loop import Run, checkpoint_name, train_adapter
from stages.training.objective import assemble, flow_losses
from stages.training.targets import plan_lora
from stages.training.validation import validation_draws

FLUX_1 = Architecture(19, 38, 3072, 16, guidance=True)
FLEX_1 = Architecture(8, 38, 3072, 16, guidance=True)


def plan(params: TrainParams, architecture: Architecture = FLUX_1, **change: object) -> dict:
    """Return the plan of changed params."""
    return plan_lora(architecture, params.model_copy(update=change))


@pytest.mark.parametrize(
    ("family", "count"), [(FLUX_1, 494), (FLEX_1, 340)], ids=["FLUX.1", "Flex.1-alpha"]
)
def test_peft_puts_lora_on_exactly_these_layers_of_the_real_shape(
    params: TrainParams, family: Architecture, count: int
) -> None:
    """494 layers of FLUX.1 and 340 of Flex.1-alpha carry LoRA; nothing outside the blocks does."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=family.double_blocks, guidance_embeds=True)
    chosen = plan(params, family, rank=1, alpha=1.0)
    add_shaped_lora(model, chosen, seed=0)
    found = lora_layers(model)
    assert len(found) == count
    assert found.keys() == chosen.keys()
    linear = {
        name.replace(".base_layer", "")
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and ".lora_" not in name
    }
    outside = {name for name in linear if "transformer_blocks." not in name}
    assert linear - outside == found.keys()
    assert "proj_out" in outside


def test_without_settings_all_modules_are_alike(params: TrainParams) -> None:
    """The run's rank and alpha everywhere, each module with its own A."""
    assert plan(params) == {
        module: LoraShape(params.rank, params.alpha, module) for module in plan(params)
    }
    assert len(plan(params)) == 494


def test_blocks_are_those_asked_for(params: TrainParams) -> None:
    """Four double blocks of 14 layers and two single ones of 6."""
    chosen = plan(params, blocks=["double.0-3", "single.7", "single.20"])
    assert len(chosen) == 4 * 14 + 2 * 6
    assert [str(block) for block in sorted({block_of(module) for module in chosen})] == [
        *(f"double.{index}" for index in range(4)),
        "single.7",
        "single.20",
    ]


def test_rank_and_alpha_per_block(params: TrainParams) -> None:
    """A setting reaches its blocks' modules alone."""
    settings = [
        BlockSetting(blocks=["double.0-3"], rank=32, alpha=16.0, learning_rate=1e-4),
        BlockSetting(blocks=["single.7"], rank=4, alpha=1.0, learning_rate=1e-4),
    ]
    for module, lora in plan(params, block_settings=settings).items():
        block = str(block_of(module))
        own = {"single.7": (4, 1.0), **{f"double.{index}": (32, 16.0) for index in range(4)}}
        assert (lora.rank, lora.alpha) == own.get(block, (params.rank, params.alpha))


def test_what_does_not_fit_the_model_is_said_at_once(params: TrainParams) -> None:
    """Blocks beyond the model, and settings of blocks that are not trained, in one message."""
    settings = [
        BlockSetting(blocks=["double.6-9"], rank=4, alpha=4.0, learning_rate=1e-4),
        BlockSetting(blocks=["single.7-9"], rank=4, alpha=4.0, learning_rate=1e-4),
    ]
    with pytest.raises(ParamsError, match=r"\(4 problems\)") as caught:
        plan(params, FLEX_1, blocks=["double.7-8", "single.7"], block_settings=settings)
    message = str(caught.value)
    assert "train.blocks: 'double.7-8' names no block" in message
    assert "train.block_settings[0].blocks: 'double.6-9' names no block" in message
    assert "names blocks that train.blocks leaves out: single.8, single.9" in message
    assert "The base model has double.0 to double.7 and single.0 to single.37." in message


def test_overlapping_settings_are_refused(params: TrainParams) -> None:
    """No order decides between two settings; every pair is named."""
    document = params.model_dump()
    document["block_settings"] = [
        {"blocks": ["double.0-3", "single"], "rank": 4, "alpha": 4.0, "learning_rate": 1e-4},
        {"blocks": ["double.3"], "rank": 8, "alpha": 8.0, "learning_rate": 1e-4},
        {"blocks": ["single.7"], "rank": 8, "alpha": 8.0, "learning_rate": 1e-4},
    ]
    with pytest.raises(ValueError, match="name blocks twice") as caught:
        TrainParams(**document)
    assert "double.0-3 (setting 0) and double.3 (setting 1)" in str(caught.value)
    assert "single (setting 0) and single.7 (setting 2)" in str(caught.value)


def test_a_pattern_outside_the_grammar_is_refused(params: TrainParams) -> None:
    """Every bad pattern of the list is in the message."""
    with pytest.raises(ValueError, match="2 validation errors") as caught:
        TrainParams(**params.model_dump() | {"blocks": ["double.0", "7", "base"]})
    assert "not a pattern of blocks: '7'" in str(caught.value)
    assert "not a pattern of blocks: 'base'" in str(caught.value)


@pytest.mark.parametrize("change", [{"timestep_location": 0.5}, {"timestep_scale": 2.0}])
def test_a_location_without_effect_is_refused(
    params: TrainParams, change: dict[str, float]
) -> None:
    """Sigmoid is the standard normal's: another location would be ignored without a word."""
    with pytest.raises(ValueError, match="has no effect without timesteps: logit-normal"):
        TrainParams(**params.model_dump() | change)
    TrainParams(**params.model_dump() | change | {"timesteps": "logit-normal"})


def test_kohyas_a_is_one_parameter(tiny_flux: FluxTransformer2DModel, params: TrainParams) -> None:
    """One A per group learns for all of it; in the file each module has a copy."""
    architecture = Architecture.from_config(tiny_flux.config)
    chosen = plan(params, architecture, targets="kohya")
    add_shaped_lora(tiny_flux, chosen, seed=0)
    parameters = lora_parameters(tiny_flux)
    assert len(parameters) == (2 * 10 + 3 * 3) + (2 * 14 + 3 * 6)
    assert len({id(parameter) for parameter in parameters.values()}) == len(parameters)
    start = extract_adapter(tiny_flux, {})
    assert len(start.modules) == 46
    for parameter in parameters.values():
        parameter.data += 1.0
    trained = extract_adapter(tiny_flux, {})
    for module, lora in chosen.items():
        assert torch.equal(trained.modules[module].down, trained.modules[lora.down_of].down)
        assert torch.equal(trained.modules[module].down, start.modules[module].down + 1)


def test_gradient_of_a_shared_a_is_the_sum(make_run: Callable[..., Run], encoded: Encoded) -> None:
    """As on sd-scripts' one fused layer: each of its parts adds its own gradient to A."""
    shared, apart = make_run(change={"targets": "kohya"}), make_run(change={"targets": "all"})
    with torch.no_grad():
        for model in (shared.transformer, apart.transformer):
            for module, layer in lora_layers(model).items():
                leader = lora_layers(shared.transformer)[shared_down([module])[module]]
                layer.lora_A[ADAPTER_NAME].weight.copy_(leader.lora_A[ADAPTER_NAME].weight)
                up = layer.lora_B[ADAPTER_NAME].weight
                up.copy_(keyed_normal(up.shape, "up", module) * 0.1)
    draws = list(validation_draws(encoded.training[:2], [0.3, 0.7]))
    batch = assemble(draws, torch.device("cpu"), torch.float32)
    for model in (shared.transformer, apart.transformer):
        flow_losses(model, batch, 1.0).mean().backward()
    expected: dict[str, torch.Tensor] = {}
    for module, layer in lora_layers(apart.transformer).items():
        leader = shared_down([module])[module]
        gradient = layer.lora_A[ADAPTER_NAME].weight.grad
        expected[leader] = expected.get(leader, torch.zeros_like(gradient)) + gradient
    for module, gradient in expected.items():
        found = lora_layers(shared.transformer)[module].lora_A[ADAPTER_NAME].weight.grad
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6)


def test_a_killed_run_with_shared_a_goes_on_to_the_same_bytes(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State holds a shared matrix once, and it is one again afterwards."""
    monkeypatch.setenv("BLOCKLENS_SAVE_EVERY_S", "0")
    setting = BlockSetting(blocks=["single.1"], rank=3, alpha=1.0, learning_rate=1e-4)
    change = {"targets": "kohya", "block_settings": [setting]}
    whole = train_adapter(make_run(change=change), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train_adapter(make_run(change=change, dies_at=2), tmp_path / "killed")
    resumed = train_adapter(make_run(change=change), tmp_path / "killed")
    name = checkpoint_name(6)
    assert resumed.files[name] == whole.files[name]


def test_an_a_for_unequal_inputs_is_refused(tiny_flux: FluxTransformer2DModel) -> None:
    """Layers of one A must read the same numbers."""
    loras = {
        "transformer_blocks.0.attn.to_q": LoraShape(2, 2.0, "transformer_blocks.0.attn.to_q"),
        "transformer_blocks.0.ff.net.2": LoraShape(2, 2.0, "transformer_blocks.0.attn.to_q"),
    }
    with pytest.raises(ValueError, match="cannot have the A of"):
        add_shaped_lora(tiny_flux, loras, seed=0)
    assert isinstance(extract_adapter(tiny_flux, {}), Adapter)
    assert not lora_layers(tiny_flux)
