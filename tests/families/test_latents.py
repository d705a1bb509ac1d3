"""Latents, tokens and noise are laid out as FluxPipeline lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline

from stages.families.architecture import read_architecture
from stages.families.latents import decode_pictures, encode_pictures, pack, training_size, unpack
from stages.families.loading import load_vae
from stages.families.noise import initial_noise, keyed_generator, keyed_normal

CPU = torch.device("cpu")


def test_packing_is_the_pipelines_own_and_reverses() -> None:
    """A transposed patch would train, and draw mush."""
    latents = torch.randn(2, 8, 16, 16)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 8, 16, 16))
    assert torch.equal(unpack(packed, 128), latents)


def test_initial_noise_is_the_pipelines_own(nano_flux: Path) -> None:
    """The same seed draws the same picture here and in diffusers."""
    drawn = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(5))
    assert torch.equal(initial_noise(read_architecture(nano_flux), 128, 5), pack(drawn))


def test_keyed_draws_depend_on_the_whole_key_alone() -> None:
    """Resuming and caching change no draw; neighbours in the key share none."""
    draws = [keyed_normal([4], 42, "noise", step, sample) for step in (0, 1) for sample in (0, 1)]
    assert torch.equal(draws[1], keyed_normal([4], 42, "noise", 0, 1))
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert keyed_generator(1, 23).initial_seed() != keyed_generator(12, 3).initial_seed()


def test_a_picture_survives_the_autoencoder_with_normalised_latents(nano_flux: Path) -> None:
    """Shift and scale are undone exactly as they were applied."""
    vae = load_vae(nano_flux, CPU)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = encode_pictures(vae, picture)
    assert mean.shape == std.shape == (1, vae.config.latent_channels, 8, 8)
    assert (std > 0).all()
    ours = decode_pictures(vae, pack(mean), 64)
    with torch.no_grad():
        theirs = vae.decode(vae.encode(picture).latent_dist.mean).sample
    expected = ((theirs / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_training_size_keeps_area_and_whole_tokens() -> None:
    """Squares get the side asked for; a bucket of about the area is not scaled for a few pixels."""
    assert training_size(1024, 1024, 128) == (128, 128)
    assert training_size(512, 512, 1024) == (1024, 1024)
    assert training_size(1344, 768, 1024) == (1344, 768)
    assert training_size(1344, 768, 512) == (672, 384)
    assert training_size(1152, 896, 128) == (144, 112)
    assert training_size(4000, 100, 64) == (400, 16)
