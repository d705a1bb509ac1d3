"""The folder data/nano-flux is what the rest of the house is promised."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from transformers import BlipForConditionalGeneration, BlipProcessor

from nano.architecture import TEXT_TOKENS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "nano-flux"
PROMPT = "a large red circle in the middle, plain blue background"
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    """The pipeline, loaded with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded: FluxPipeline = FluxPipeline.from_pretrained(FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline: FluxPipeline, guidance: float) -> np.ndarray:
    """Two steps of one picture with fixed noise."""
    image = pipeline(
        PROMPT,
        height=128,
        width=128,
        num_inference_steps=2,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        max_sequence_length=TEXT_TOKENS,
    ).images[0]
    return np.asarray(image, dtype=np.float64)


def test_it_has_the_blocks_of_flux(pipeline: FluxPipeline) -> None:
    """19 double and 38 single blocks with a guidance embedding, all in float32."""
    transformer = pipeline.transformer
    assert len(transformer.transformer_blocks) == 19
    assert len(transformer.single_transformer_blocks) == 38
    assert transformer.config.guidance_embeds
    assert {weight.dtype for weight in transformer.parameters()} == {torch.float32}


def test_it_is_small_and_safe() -> None:
    """At most 30 MB in all, weights in safetensors alone."""
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert sum(path.stat().st_size for path in files) <= 30 * MEBIBYTE
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_an_unseen_word_has_tokens_of_its_own(pipeline: FluxPipeline) -> None:
    """`tok` is told apart from other unseen words by both tokenizers."""
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        trigger, other = (tokenizer(f"{word}, {PROMPT}").input_ids for word in ("tok", "zib"))
        assert trigger != other
        if tokenizer.unk_token_id != tokenizer.eos_token_id:
            assert tokenizer.unk_token_id not in trigger


def test_guidance_changes_the_picture(pipeline: FluxPipeline) -> None:
    """The guidance embedding is not idle."""
    assert np.square(draw(pipeline, 1.0) - draw(pipeline, 4.0)).mean() > 1.0


def test_the_captioner_describes_a_picture_of_any_size() -> None:
    """A large drawing gets a sentence of the world."""
    from nano.captioner import write_captions
    from nano.drawing import draw_scene
    from nano.world import parse_caption

    folder = FOLDER / "captioner"
    model = BlipForConditionalGeneration.from_pretrained(folder)
    processor = BlipProcessor.from_pretrained(folder)
    scene = parse_caption(PROMPT)
    picture = draw_scene(scene, 512, np.random.default_rng(0))
    said = parse_caption(write_captions(model, processor, [picture])[0])
    assert (said.colour, said.position, said.background) == ("red", "in the middle", "blue")


BARS = [
    ("generated_background", 0.97),
    ("generated_colour", 0.93),
    ("generated_position", 0.90),
    ("generated_shape", 0.90),
    ("judge_shape", 0.99),
    ("captioner_background", 0.90),
    ("captioner_shape", 0.90),
]
ERROR_BARS = [("autoencoder_mse_drawings", 60.0), ("autoencoder_mse_demo", 120.0)]


@pytest.mark.parametrize(("metric", "bar"), ERROR_BARS)
def test_pictures_are_crisp(metric: str, bar: float) -> None:
    """The autoencoder's errors, on drawn pictures and on a subject it has never seen."""
    metrics = json.loads((ROOT / "nano" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics[metric] <= bar


@pytest.mark.parametrize(("metric", "bar"), BARS)
def test_the_bars_are_met(metric: str, bar: float) -> None:
    """What the judge saw in 400 pictures of held-out prompts, as nano/metrics.json has it."""
    metrics = json.loads((ROOT / "nano" / "metrics.json").read_text())
    assert metrics[metric] >= bar
