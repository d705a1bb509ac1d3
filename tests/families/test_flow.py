"""Our parts put together draw what FluxPipeline draws."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from stages.adapters.attach import add_lora
from stages.contracts.params import ModelParams
from stages.families.architecture import read_architecture
from stages.families.flow import predict_velocity, sampling_sigmas, working_dtype
from stages.families.latents import decode_pictures
from stages.families.loading import load_text_encoders, load_transformer, load_vae
from stages.families.noise import initial_noise
from stages.families.text import TextBatch, batch_text, count_tokens, encode_prompts

CPU = torch.device("cpu")
PROMPT = "a small red circle on the left, striped blue background"
STEPS, TEXT_TOKENS, SIZE_PX, SEED, GUIDANCE = 3, 32, 128, 11, 2.5
MODEL = ModelParams(
    precision="float32", quantisation="none", offload="none", text_tokens=TEXT_TOKENS
)


def test_euler_steps_of_ours_equal_the_pipeline(nano_flux: Path) -> None:
    """Noise, schedule, text, guidance, step and decoder: all as diffusers does it."""
    transformer = load_transformer(nano_flux, MODEL, CPU)
    text = batch_text(
        encode_prompts(load_text_encoders(nano_flux, "float32", CPU), [PROMPT], TEXT_TOKENS)
    )
    sigmas = sampling_sigmas(nano_flux, STEPS, SIZE_PX)
    packed = initial_noise(read_architecture(nano_flux), SIZE_PX, SEED)
    for now, then in itertools.pairwise(sigmas):
        with torch.no_grad():
            velocity = predict_velocity(transformer, packed, now[None], text, GUIDANCE)
        packed = packed + (then - now) * velocity
    ours = decode_pictures(load_vae(nano_flux, CPU), packed, SIZE_PX)[0]

    pipeline = FluxPipeline.from_pretrained(nano_flux)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT,
        height=SIZE_PX,
        width=SIZE_PX,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=TEXT_TOKENS,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_a_prompt_does_not_depend_on_its_neighbours(nano_flux: Path) -> None:
    """Embeddings are cached one by one; the empty prompt is one of them."""
    encoders = load_text_encoders(nano_flux, "float32", CPU)
    together = encode_prompts(encoders, [PROMPT, "", "tok"], TEXT_TOKENS)
    alone = encode_prompts(encoders, [""], TEXT_TOKENS)[0]
    assert together[1].tokens.shape[0] == TEXT_TOKENS
    assert torch.equal(together[1].tokens, alone.tokens)
    assert torch.equal(together[1].pooled, alone.pooled)
    assert not torch.equal(together[0].pooled, together[2].pooled)


def test_token_counts_are_of_the_uncut_text(nano_flux: Path) -> None:
    """What will be cut off can be reported before it is."""
    (clip, t5), (long_clip, long_t5) = count_tokens(nano_flux, ["tok", " ".join(["circle"] * 200)])
    assert 1 < clip < long_clip
    assert 1 < t5 < long_t5
    assert min(long_clip, long_t5) > 200


def test_schedule_falls_from_one_to_zero(nano_flux: Path) -> None:
    """Steps + 1 levels, the last one clean."""
    sigmas = sampling_sigmas(nano_flux, 8, 128)
    assert sigmas.shape == (9,)
    assert sigmas[0] == 1.0
    assert sigmas[-1] == 0.0
    assert (sigmas.diff() < 0).all()


def test_guidance_none_is_a_model_without_the_embedder(
    tiny_flux: FluxTransformer2DModel,
) -> None:
    """The bypass of Flex.1-alpha: time and text alone, bit for bit, and only for that call."""
    plain = FluxTransformer2DModel.from_config({**tiny_flux.config, "guidance_embeds": False})
    weights = tiny_flux.state_dict()
    dropped = {name: weights.pop(name) for name in list(weights) if "guidance_embedder" in name}
    assert len(dropped) == 4
    plain.load_state_dict(weights)
    packed, text = torch.randn(2, 4, 32), TextBatch(torch.randn(2, 6, 64), torch.randn(2, 64))
    sigmas = torch.tensor([0.2, 0.7])
    with torch.no_grad():
        guided = predict_velocity(tiny_flux, packed, sigmas, text, 1.0)
        bypassed = predict_velocity(tiny_flux, packed, sigmas, text, None)
        assert torch.equal(predict_velocity(tiny_flux, packed, sigmas, text, 1.0), guided)
        expected = predict_velocity(plain.eval(), packed, sigmas, text, None)
        assert torch.equal(predict_velocity(plain, packed, sigmas, text, 3.5), expected)
    assert torch.equal(bypassed, expected)
    assert not torch.allclose(bypassed, guided)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_working_dtype_is_the_models(
    tiny_flux: FluxTransformer2DModel, dtype: torch.dtype
) -> None:
    """With and without a float32 LoRA on the very layer that is asked."""
    tiny_flux.to(dtype)
    assert working_dtype(tiny_flux) == tiny_flux.dtype == dtype
    add_lora(tiny_flux, ["x_embedder"], 2, 2.0, 0)
    assert working_dtype(tiny_flux) == tiny_flux.dtype == dtype
