"""What a layer of a block acts on."""

import pytest

from stages.families.architecture import Architecture, block_of, lora_modules
from stages.families.streams import stream_of


@pytest.mark.parametrize(
    ("module", "stream"),
    [
        ("transformer_blocks.7.attn.to_q", "picture"),
        ("transformer_blocks.7.attn.to_out.0", "picture"),
        ("transformer_blocks.7.ff.net.2", "picture"),
        ("transformer_blocks.7.norm1.linear", "picture"),
        ("transformer_blocks.7.attn.add_k_proj", "text"),
        ("transformer_blocks.7.attn.to_add_out", "text"),
        ("transformer_blocks.7.ff_context.net.0.proj", "text"),
        ("transformer_blocks.7.norm1_context.linear", "text"),
        ("single_transformer_blocks.7.attn.to_q", None),
        ("single_transformer_blocks.7.proj_out", None),
        ("single_transformer_blocks.7.norm.linear", "both"),
        ("context_embedder", "both"),
    ],
)
def test_layers_know_their_stream(module: str, stream: str | None) -> None:
    """By name, as diffusers calls them."""
    assert stream_of(module) == stream


def test_half_of_a_double_block_is_for_the_prompt() -> None:
    """Every double block has as many layers for the prompt as for the picture."""
    names = [
        module
        for module in lora_modules(Architecture(2, 3, 32, 8, True), "all")
        if block_of(module).stack == "double"
    ]
    assert [stream_of(name) for name in names].count("text") == len(names) / 2 == 14


def test_what_is_no_layer_is_refused() -> None:
    """A name that FLUX does not have is a mistake."""
    with pytest.raises(ValueError, match="no FLUX transformer"):
        stream_of("transformer_blocks.7.attn.to_x")
