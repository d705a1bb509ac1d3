"""The grammar of anybody's names, and what is said of names that are in nobody's."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from stages.adapters.files import read_adapter
from stages.adapters.formats.foreign import TEXT_ENCODER, name_problems
from stages.adapters.formats.layers import layer_rows, original_layer
from stages.adapters.formats.names import read_name
from stages.contracts.errors import AdapterError
from stages.families.architecture import Architecture, block_of, lora_modules

FLUX_1 = Architecture(19, 38, 3072, 16, guidance=True)


@pytest.mark.parametrize(
    ("name", "layer", "part", "title"),
    [
        ("transformer.proj_out.lora_A.weight", "proj_out", "down", "diffusers"),
        ("proj_out.alpha", "proj_out", "alpha", "diffusers without prefix"),
        ("base_model.model.proj_out.lora_B.default.weight", "proj_out", "up", "PEFT"),
        (
            "transformer.single_transformer_blocks.7.proj_out.lora.down.weight",
            "single_transformer_blocks.7.proj_out",
            "down",
            "diffusers",
        ),
        ("lora_unet_img_in.lora_down.weight", "img_in", "down", "kohya"),
        (
            "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight",
            "final_layer.adaLN_modulation.1",
            "up",
            "kohya",
        ),
        (
            "lora_transformer_transformer_blocks_17_ff_net_0_proj.alpha",
            "transformer_blocks.17.ff.net.0.proj",
            "alpha",
            "OneTrainer",
        ),
        (
            "lycoris_single_transformer_blocks_7_attn_to_q.lokr_w2_b",
            "single_transformer_blocks.7.attn.to_q",
            "lokr_w2_b",
            "LyCORIS",
        ),
        (
            "double_blocks.3.processor.qkv_lora2.up.weight",
            "double_blocks.3.processor.qkv_lora2",
            "up",
            "XLabs",
        ),
        (
            "diffusion_model.single_blocks.3.linear1.lora_B.weight",
            "single_blocks.3.linear1",
            "up",
            "Black Forest Labs under ComfyUI's prefix",
        ),
        (
            "single_blocks.3.modulation.lin.dora_scale",
            "single_blocks.3.modulation.lin",
            "magnitude",
            "Black Forest Labs",
        ),
    ],
)
def test_names_are_understood(name: str, layer: str, part: str, title: str) -> None:
    """One example of each way of spelling."""
    read = read_name(name)
    assert read is not None
    assert (read.layer.name, read.part, read.spelling.title) == (layer, part, title)


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_double_blocks_07_img_attn_qkv.alpha",
        "lora_unet_double_blocks_7_img_attn_qkv_more.alpha",
        "lora_unet_double_blocks_7_img_attn_qkv",
        "more.lora_unet_double_blocks_7_img_attn_qkv.alpha",
        "lora_unet_double_blocks_7_linear1.alpha",
        "double_blocks.7.img_attn.qkv.down.weight",
        "double_blocks.7.processor.qkv_lora1.lora_A.weight",
        "transformer.transformer_blocks_7_attn_to_q.lora_A.weight",
        "lora_unet_single_blocks_7_processor_qkv_lora.down.weight",
        "transformer_blocks.7.lora_A.weight",
        "",
    ],
)
def test_what_only_resembles_a_name_is_none(name: str) -> None:
    """Whole names count, with one spelling's prefix, words and parts together."""
    assert read_name(name) is None


def test_every_layer_of_ours_is_in_one_original_layer() -> None:
    """Fused layers together hold the 494 layers of the blocks, each once."""
    modules = lora_modules(FLUX_1, "all")
    layers = {original_layer(module) for module in modules}
    assert len(layers) == 304
    assert sorted(part for layer in layers for part in layer.modules) == sorted(modules)
    for layer in layers:
        assert len({block_of(module) for module in layer.modules}) == 1
        read = read_name(f"lora_unet_{layer.name.replace('.', '_')}.alpha")
        assert read is not None
        assert read.layer == layer
    with pytest.raises(ValueError, match="no FLUX transformer"):
        original_layer("transformer_blocks.0.attn.to_x")


def test_rows_of_fused_layers() -> None:
    """Query, key and value are as wide as the input; what is left of linear1 is the MLP's."""
    linear1 = original_layer("single_transformer_blocks.3.proj_mlp")
    rows = layer_rows(linear1, (21504, 3072))
    assert rows is not None
    assert [rows[module] for module in linear1.modules] == [
        ((0, 3072),),
        ((3072, 6144),),
        ((6144, 9216),),
        ((9216, 21504),),
    ]
    assert layer_rows(original_layer("norm_out.linear"), (6, 4)) == {
        "norm_out.linear": ((3, 6), (0, 3))
    }
    assert layer_rows(linear1, (9216, 3072)) is None
    assert layer_rows(original_layer("transformer_blocks.0.attn.to_q"), (9217, 3072)) is None
    assert layer_rows(original_layer("norm_out.linear"), (5, 4)) is None


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.dora_scale",
        "bundle_emb.tok.clip_l",
    ],
)
def test_text_encoders_are_known(name: str) -> None:
    """Whoever writes them; `base` is something else."""
    assert TEXT_ENCODER.fullmatch(name)
    assert not TEXT_ENCODER.fullmatch("transformer.context_embedder.lora_A.weight")
    assert not TEXT_ENCODER.fullmatch(
        "transformer.time_text_embed.text_embedder.linear_1.lora_A.weight"
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", "Stable Diffusion 1.5"),
        ("lora_unet_input_blocks_4_1_proj_in.alpha", "Stable Diffusion 1.5, 2 or XL"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "Stable Diffusion 1.5, 2 or XL"),
        ("lora_unet_joint_blocks_3_x_block_attn_qkv.lora_up.weight", "Stable Diffusion 3"),
        ("diffusion_model.blocks.3.self_attn.q.lora_A.weight", "Wan"),
        ("lora_unet_blocks_3_ffn_0.lora_down.weight", "Wan"),
        ("transformer.double_blocks.3.img_attn_qkv.lora_A.weight", "Hunyuan Video"),
        ("transformer.transformer_blocks.3.img_mlp.net.2.lora_A.weight", "Qwen-Image"),
        ("transformer.transformer_blocks.3.attn1.to_q.lora_A.weight", "PixArt, LTX-Video or Sana"),
        ("diffusion_model.layers.3.attention.qkv.lora_A.weight", "Lumina or Z-Image"),
        (
            "transformer.single_transformer_blocks.3.attn.to_qkv_mlp_proj.lora_A.weight",
            "FLUX.2",
        ),
        ("diffusion_model.distilled_guidance_layer.in_proj.lora_A.weight", "Chroma"),
        ("transformer.double_stream_blocks.3.block.ff.lora_A.weight", "HiDream"),
        ("lora_unet_double_blocks_0_img_mlp_0.lora_mid.weight", "Tucker"),
        ("transformer.proj_out.oft_blocks", "OFT"),
        ("transformer.proj_out.lora_B.bias", "bias or norm"),
        ("double_blocks.0.img_attn.norm.query_norm.scale", "bias or norm"),
        ("transformer.transformer_blocks.0.attn.norm_added_q.weight", "bias or norm"),
        ("lora_unet_double_blocks_0_img_mlp_0.diff_b", "bias or norm"),
        ("what.is.this", "unknown keys"),
    ],
)
def test_other_names_are_refused_by_what_they_are(name: str, what: str) -> None:
    """Whoever brings something else learns what it is, and what to do."""
    assert read_name(name) is None
    problems = name_problems("file", [name], {})
    assert len(problems) == 1
    assert what in problems[0].what
    assert name in problems[0].what
    assert len(problems[0].remedy) > 20


def test_the_header_may_name_the_model() -> None:
    """A header that names another model is told beside the keys; one that names FLUX.1 is not."""
    sdxl = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "flux-1-dev/lora"}
    problems = name_problems("file", ["what.is.this"], sdxl)
    assert [problem.what for problem in problems[1:]] == ["says 'sdxl_base_v1-0'"]
    for text in ("flux1", "flux.1", "flux-1-schnell/lora", "Flux.1-dev", "flex-1-alpha/lora"):
        assert len(name_problems("file", ["what"], {"modelspec.architecture": text})) == 1
    assert len(name_problems("file", ["what"], {"modelspec.architecture": "flux-2-dev"})) == 2
    assert name_problems("file", [], sdxl) == [], "a header alone refuses nothing"


def test_a_whole_lora_of_another_model_is_one_message(tmp_path: Path) -> None:
    """Hundreds of keys, text encoders among them: one line per kind, ten names and the total."""
    tensors = {
        f"lora_unet_down_blocks_1_attentions_{index}_proj_in.{end}": torch.ones(2, 2)
        for index in range(50)
        for end in ("lora_down.weight", "lora_up.weight")
    }
    tensors |= {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2)}
    path = tmp_path / "sdxl.safetensors"
    safetensors.torch.save_file(tensors, path, {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(AdapterError) as caught:
        read_adapter(path)
    message = str(caught.value)
    assert "(2 problems)" in message
    assert "is a LoRA of Stable Diffusion 1.5, 2 or XL" in message
    assert "(100 in all)" in message
    assert "says 'sdxl_base_v1-0'" in message


def test_text_encoders_alone_are_no_lora_of_a_transformer(tmp_path: Path) -> None:
    """There is nothing for the lens to look at."""
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"
    safetensors.torch.save_file({name: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="holds text-encoder keys alone"):
        read_adapter(tmp_path / "a.safetensors")


def test_a_layer_must_be_changed_once(tmp_path: Path) -> None:
    """Two spellings of one key, and a fused layer beside its own part, are refused by name."""
    fused = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 4),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(12, 2),
    }
    module = "transformer_blocks.0.attn.to_k"
    part = {
        f"{prefix}{module}.{end}.weight": torch.ones(shape)
        for prefix in ("", "transformer.")
        for end, shape in (("lora_A", (2, 4)), ("lora_B", (4, 2)))
    }
    safetensors.torch.save_file(fused | part, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "a.safetensors")
    assert f"has keys twice: transformer.{module}.lora_A.weight" in str(caught.value)
    assert f"changes layers twice: {module}" in str(caught.value)


def test_parts_must_make_a_change(tmp_path: Path) -> None:
    """Truncated sets of parts, odd shapes and rows that do not divide: all in one message."""
    tensors = {
        "lora_unet_double_blocks_0_img_mlp_0.lokr_w1": torch.ones(2, 2),
        "lora_unet_double_blocks_1_img_mlp_0.hada_w1_a": torch.ones(4, 2),
        "lora_unet_double_blocks_1_img_mlp_0.hada_w1_b": torch.ones(2, 4),
        "lora_unet_double_blocks_1_img_mlp_0.hada_w2_a": torch.ones(5, 2),
        "lora_unet_double_blocks_1_img_mlp_0.hada_w2_b": torch.ones(2, 4),
        "lora_unet_double_blocks_2_img_mlp_0.dora_scale": torch.ones(4),
        "lora_unet_double_blocks_2_img_mlp_0.lora_up.weight": torch.ones(4, 2),
        "lora_unet_single_blocks_0_linear1.lora_down.weight": torch.ones(2, 4),
        "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.ones(12, 2),
    }
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "a.safetensors")
    for expected in (
        "parts that make no LoRA: double_blocks.0.img_mlp.0 (lokr_w1)",
        "rank mismatch: double_blocks.1.img_mlp.0 (hada_w1_a [4, 2]",
        "lora_B without lora_A: double_blocks.2.img_mlp.0",
        "rows do not divide: single_blocks.0.linear1 [12, 4]",
    ):
        assert expected in str(caught.value)
