"""The grammar of tensor names."""

from __future__ import annotations

import pytest

from stages.adapters.keys import Key, format_key, parse_key, parse_keys
from stages.families.architecture import Architecture, block_of, lora_modules

FLUX_1 = Architecture(19, 38, 3072, 16, guidance=True)
BASE_MODULES = (
    "x_embedder",
    "context_embedder",
    "norm_out.linear",
    "proj_out",
    *(
        f"time_text_embed.{kind}_embedder.linear_{number}"
        for kind in ("timestep", "text", "guidance")
        for number in (1, 2)
    ),
)


def test_every_name_that_we_write_is_read_back() -> None:
    """format_key and parse_key are inverse on all 494 block layers and the 10 base layers."""
    modules = lora_modules(FLUX_1, "all") + BASE_MODULES
    keys = [Key(module, part) for module in modules for part in ("down", "up", "alpha")]
    assert len(keys) == 3 * 504
    assert [parse_key(format_key(key)) for key in keys] == keys


def test_the_prefix_is_optional() -> None:
    """save_lora_adapter of diffusers writes no prefix, save_lora_weights does."""
    name = "single_transformer_blocks.7.proj_out.lora_B.weight"
    assert parse_key(name) == parse_key(f"transformer.{name}")
    assert parse_key(name) == Key("single_transformer_blocks.7.proj_out", "up")


def test_names_that_contain_each_other_stay_apart() -> None:
    """Substring matching confuses these; whole-name matching does not."""
    names = [
        "transformer.transformer_blocks.7.attn.to_q.lora_A.weight",
        "transformer.single_transformer_blocks.7.attn.to_q.lora_A.weight",
        "transformer.transformer_blocks.17.attn.to_q.lora_A.weight",
        "transformer.proj_out.lora_A.weight",
        "transformer.single_transformer_blocks.7.proj_out.lora_A.weight",
    ]
    blocks = [str(block_of(parse_key(name).module)) for name in names]
    assert blocks == ["double.7", "single.7", "double.17", "base", "single.7"]


@pytest.mark.parametrize(
    "name",
    [
        "transformer.transformer_blocks.7.attn.to_q.lora_A",
        "transformer.transformer_blocks.7.attn.to_q.lora_A.weight.more",
        "more.transformer.transformer_blocks.7.attn.to_q.lora_A.weight",
        "transformer.transformer_blocks.07.attn.to_q.lora_A.weight",
        "transformer.transformer_blocks.7.attn.to_x.lora_A.weight",
        "transformer.transformer_blocks.7.lora_A.weight",
        "transformer.lora_A.weight",
        "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",
        "transformer.transformer_blocks.7.attn.to_q.lora_C.weight",
        "",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    """Anything but the whole grammar is an error."""
    with pytest.raises(ValueError, match=r"not a LoRA key|no FLUX transformer"):
        parse_key(name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("text_encoder.layers.0.mlp.fc1.lora_A.weight", "text-encoder keys"),
        ("text_encoder_2.encoder.block.0.lora_A.weight", "text-encoder keys"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "text-encoder keys"),
        ("lora_te3_encoder_block_0.lora_down.weight", "text-encoder keys"),
        ("transformer.proj_out.lora_magnitude_vector", "DoRA"),
        ("lora_unet_double_blocks_0_img_mlp_0.dora_scale", "DoRA"),
        ("transformer.proj_out.lokr_w1", "LoKr"),
        ("lycoris_single_blocks_0_linear1.hada_w1_a", "LoHa"),
        ("transformer.proj_out.lora_B.bias", "bias"),
        ("transformer.transformer_blocks.0.attn.norm_added_q.weight", "norm"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "kohya"),
        ("lora_transformer_proj_out.lora_down.weight", "kohya"),
        ("double_blocks.0.processor.qkv_lora1.down.weight", "XLabs"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "Black Forest Labs"),
        ("base_model.model.proj_out.lora_A.weight", "save_pretrained"),
    ],
)
def test_known_foreign_names_are_refused_by_their_name(name: str, what: str) -> None:
    """Whoever brings another format learns which it is, and what to do."""
    keys, problems = parse_keys([name], "file")
    assert not keys
    assert len(problems) == 1
    assert what in problems[0].what
    assert name in problems[0].what
    assert len(problems[0].remedy) > 20


def test_all_kinds_of_leftovers_come_in_one_list() -> None:
    """Each kind is one problem with its keys and their number; good keys are still returned."""
    good = "transformer.proj_out.lora_A.weight"
    text = [f"text_encoder.layers.{number}.lora_A.weight" for number in range(12)]
    keys, problems = parse_keys([good, *text, "what.is.this"], "file")
    assert keys == {Key("proj_out", "down"): good}
    assert ["12 in all" in problem.what for problem in problems] == [True, False]
    assert "unknown keys: what.is.this" in problems[1].what
    assert "keeps only the keys beginning with `transformer.`" in problems[0].remedy


def test_one_module_under_two_names_is_refused() -> None:
    """With and without prefix is the same tensor: which one counts, nobody can say."""
    name = "proj_out.lora_A.weight"
    _, problems = parse_keys([name, f"transformer.{name}"], "file")
    assert [problem.what for problem in problems] == [f"has keys twice: {name}, transformer.{name}"]
