"""Block counts come from the model, module names are FLUX's own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.contracts.blocks import BASE, BlockId
from stages.contracts.errors import WeightsError
from stages.families.architecture import (
    Architecture,
    Targets,
    block_of,
    lora_modules,
    read_architecture,
    shared_down,
)

FLUX_1_DEV = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "guidance_embeds": True,
}


def linear_layers(config: dict[str, object]) -> list[str]:
    """Return the names of all Linear layers of a FLUX transformer, without its 24 GB."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)
    return [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]


@pytest.mark.parametrize(
    ("doubles", "count"), [(19, 494), (8, 340)], ids=["FLUX.1", "Flex.1-alpha"]
)
def test_all_targets_are_every_linear_layer_of_the_blocks(doubles: int, count: int) -> None:
    """The published recipe trains 494 modules on FLUX.1's real shape and 340 on Flex.1's."""
    config = FLUX_1_DEV | {"num_layers": doubles}
    modules = lora_modules(Architecture.from_config(config), "all")
    assert len(modules) == len(set(modules)) == count
    in_blocks = {name for name in linear_layers(config) if block_of(name) != BASE}
    assert set(modules) == in_blocks


@pytest.mark.parametrize(
    ("targets", "flux_1", "flex_1"),
    [("all", 494, 340), ("attention", 266, 178), ("attention+mlp", 418, 286), ("kohya", 494, 340)],
)
def test_count_per_family_and_preset(targets: Targets, flux_1: int, flex_1: int) -> None:
    """19 or 8 double blocks of 8, 12 or 14 layers, and 38 single ones of 3, 5 or 6."""
    for doubles, count in ((19, flux_1), (8, flex_1)):
        architecture = Architecture.from_config(FLUX_1_DEV | {"num_layers": doubles})
        assert len(lora_modules(architecture, targets)) == count


def test_kohyas_layers_share_an_a_where_his_are_one() -> None:
    """304 LoRAs on FLUX.1, as sd-scripts counts; the layers of a group have one input."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(**FLUX_1_DEV)
    modules = lora_modules(Architecture.from_config(FLUX_1_DEV), "kohya")
    leaders = shared_down(modules)
    assert len(set(leaders.values())) == 10 * 19 + 3 * 38 == 304
    for module, leader in leaders.items():
        layers = [model.get_submodule(name) for name in (module, leader)]
        assert layers[0].in_features == layers[1].in_features
        assert block_of(module) == block_of(leader)
        assert leaders[leader] == leader
    groups = Counter(leaders.values())
    assert groups["transformer_blocks.3.attn.add_q_proj"] == 3
    assert groups["single_transformer_blocks.37.attn.to_q"] == 4
    assert groups["single_transformer_blocks.37.proj_out"] == 1
    # Rank 16 in 16 bits, from the shapes of Black Forest Labs' own layers: sd-scripts' 153 MB.
    rank, width = 16, 3072
    outputs = [3 * width, width, 4 * width, width, 6 * width] * 2
    inputs = [width, width, width, 4 * width, width] * 2
    double = sum(outputs) + sum(inputs)
    single = (width + 7 * width) + (5 * width + width) + (width + 3 * width)
    ups = sum(model.get_submodule(module).out_features for module in modules)
    downs = sum(model.get_submodule(leader).in_features for leader in set(leaders.values()))
    assert ups + downs == 19 * double + 38 * single
    assert round(2 * rank * (ups + downs) / 1e6) == 153


def test_smaller_targets_leave_modulation_out() -> None:
    """Attention is part of attention+mlp, which is part of all."""
    architecture = Architecture.from_config(FLUX_1_DEV)
    attention, mlp, everything = (
        set(lora_modules(architecture, targets))
        for targets in ("attention", "attention+mlp", "all")
    )
    assert attention < mlp < everything
    assert {name for name in everything - mlp if "norm" not in name} == set()
    assert len(attention) == 19 * 8 + 38 * 3


def test_every_linear_layer_has_exactly_one_block() -> None:
    """57 blocks and base share out the whole model."""
    names = linear_layers(FLUX_1_DEV)
    blocks = {block_of(name) for name in names}
    assert blocks == {*Architecture.from_config(FLUX_1_DEV).blocks, BASE}
    assert block_of("proj_out") == BASE
    assert block_of("single_transformer_blocks.7.proj_out") == BlockId("single", 7)
    assert block_of("transformer_blocks.7.attn.to_q") == BlockId("double", 7)


@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.7.attn",
        "transformer_blocks.07.attn.to_q",
        "transformer_blocks.7.proj_mlp",
        "xtransformer_blocks.7.attn.to_q",
        "transformer_blocks.7.attn.to_q.lora_A",
        "single_transformer_blocks.7.attn.to_out.0",
    ],
)
def test_names_that_flux_does_not_have_are_refused(name: str) -> None:
    """A near miss must not land in some other block."""
    with pytest.raises(ValueError, match="no FLUX transformer"):
        block_of(name)


def test_a_folder_without_flux_is_refused(tmp_path: Path) -> None:
    """Pointing fetch at an SDXL folder ends here."""
    with pytest.raises(WeightsError, match="cannot be read"):
        read_architecture(tmp_path)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps({"num_layers": 4}))
    with pytest.raises(WeightsError, match="not a FLUX transformer config"):
        read_architecture(tmp_path)
