"""Random numbers that depend on a key alone: (seed, stream, step, sample).

Neither resuming, nor caching, nor the size of a batch changes a draw, because no generator
outlives the draw. All draws are made on the CPU in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from stages.families.architecture import Architecture
from stages.families.latents import latent_shape, pack

_SEED_BYTES = 8


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a fresh CPU generator whose stream is a function of `key` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:_SEED_BYTES], "little", signed=True)
    return torch.Generator().manual_seed(seed)


def keyed_normal(shape: Sequence[int], *key: int | str) -> torch.Tensor:
    """Return standard normal draws of `shape`, float32 on the CPU."""
    return torch.randn(*shape, generator=keyed_generator(*key))


def keyed_uniform(shape: Sequence[int], *key: int | str) -> torch.Tensor:
    """Return uniform draws from [0, 1) of `shape`, float32 on the CPU."""
    return torch.rand(*shape, generator=keyed_generator(*key))


def initial_noise(architecture: Architecture, size_px: int, seed: int) -> torch.Tensor:
    """Return the packed noise [1, N, 4C] that FluxPipeline starts a picture of `seed` from.

    It equals the pipeline's own float32 draw for `torch.Generator().manual_seed(seed)`.
    """
    shape = (1, *latent_shape(architecture, size_px))
    return pack(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
