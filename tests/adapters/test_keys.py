"""The grammar of tensor names."""

from __future__ import annotations

import pytest

from stages.adapters.keys import Key, format_key, parse_key
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
