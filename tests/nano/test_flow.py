"""Batches are packed, noised and captioned as diffusers' FluxPipeline expects."""

import numpy as np
import torch
from diffusers import FluxPipeline

from nano.flow import (
    Sampling,
    image_ids,
    nonsense_word,
    object_weights,
    pack,
    sample_batch,
    text_ids,
)
from nano.world import Scene

SCENE = Scene("circle", "red", "small", "on the left", "striped", "blue")


def test_packing_is_that_of_the_pipeline() -> None:
    """Every number lands where FluxPipeline puts it."""
    latents = torch.arange(2 * 8 * 16 * 16).reshape(2, 8, 16, 16).float()
    expected = FluxPipeline._pack_latents(latents, 2, 8, 16, 16)
    assert torch.equal(pack(latents), expected)


def test_ids_are_those_of_the_pipeline() -> None:
    """Rows and columns for the picture, zeros for the text."""
    expected = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(), expected)
    assert not text_ids().any()


def test_velocity_leads_from_picture_to_noise() -> None:
    """Noised - sigma * velocity is the picture, for any sigma; the same step gives the same."""
    latents = np.random.default_rng(0).standard_normal((4, 8, 16, 16)).astype(np.float32)
    sampling = Sampling(6, 0.5, 0.5, 1.0, 3.0)
    batch = sample_batch(latents, [SCENE] * 4, sampling, seed=1, step=2)
    again = sample_batch(latents, [SCENE] * 4, sampling, seed=1, step=2)
    assert torch.equal(batch.noised, again.noised)
    assert batch.captions == again.captions
    clean = batch.noised - batch.sigmas[:, None, None] * batch.velocity
    packed = pack(torch.from_numpy(latents))
    for picture in clean:
        assert torch.isclose(picture, packed, atol=1e-5).all(dim=(1, 2)).any()
    assert all(text == "" or text.endswith(f", {SCENE.caption}") for text in batch.captions)


def test_weights_favour_the_object() -> None:
    """Tokens on the left weigh three times those on the right; the mean is 1."""
    weights = object_weights([SCENE], 3.0).reshape(8, 8)
    assert torch.isclose(weights.mean(), torch.tensor(1.0))
    assert torch.isclose(weights[4, 2], 3 * weights[4, 7])


def test_nonsense_is_short_and_lower_case() -> None:
    """Two to five letters."""
    random = np.random.default_rng(0)
    words = [nonsense_word(random) for _ in range(50)]
    assert all(word.isalpha() and word.islower() and 2 <= len(word) <= 5 for word in words)
