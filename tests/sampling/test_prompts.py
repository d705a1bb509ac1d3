"""Prompts and their names."""

from pathlib import Path

import torch

from stages.contracts.params import ModelParams, PromptsParams
from stages.sampling.prompts import embed_prompts, name_prompts

PARAMS = PromptsParams(
    develop=["tok, a", "tok, b"],
    held_out=["tok, c"],
    without_trigger=[],
    seeds=[0],
    held_out_seeds=[1],
)


def test_prompts_are_numbered_within_their_list() -> None:
    """Names say which list a prompt is from, so that no table mixes up choosing and confirming."""
    named = name_prompts(PARAMS)
    assert [(prompt.name, prompt.text) for prompt in named.develop] == [
        ("develop-0", "tok, a"),
        ("develop-1", "tok, b"),
    ]
    assert [prompt.name for prompt in named.held_out] == ["held-out-0"]
    assert named.without_trigger == ()


def test_embeddings_are_found_by_name(nano_flux: Path) -> None:
    """Each prompt has its own embedding, of the length that params ask for."""
    named = name_prompts(PARAMS).develop
    model = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=12)
    texts = embed_prompts(nano_flux, named, model, torch.device("cpu"))
    assert set(texts) == {"develop-0", "develop-1"}
    assert texts["develop-0"].tokens.shape[0] == 12
    assert not torch.equal(texts["develop-0"].tokens, texts["develop-1"].tokens)
