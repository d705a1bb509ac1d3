"""Adapters with a known place: random numbers in some blocks, zeros or nothing in the others."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.module import Adapter, LoraPair
from stages.contracts.blocks import BlockId
from stages.families.architecture import Architecture, block_of, lora_modules
from stages.families.flow import predict_velocity
from stages.families.noise import keyed_normal
from stages.families.text import TextBatch
from stages.families.weights import Manifest, WeightFile, write_manifest
from stages.runtime.files import sha256_file

RANK = 2


def plant_adapter(
    architecture: Architecture,
    shapes: Mapping[str, tuple[int, int]],
    strengths: Mapping[BlockId, float],
) -> Adapter:
    """Return an adapter on every Linear layer of the blocks in `strengths`.

    The strength is the factor of B's normal draws: 0 is a block that is present without effect.
    """
    modules = {}
    for module in lora_modules(architecture, "all"):
        block = block_of(module)
        if block in strengths:
            rows, columns = shapes[module]
            up = strengths[block] * keyed_normal((rows, RANK), "up", module)
            modules[module] = LoraPair(keyed_normal((RANK, columns), "down", module), up, RANK)
    return Adapter(modules, {})


def same_strength(blocks: Collection[BlockId], strength: float) -> dict[BlockId, float]:
    """Return the strengths of an adapter that is equally strong in all of `blocks`."""
    return dict.fromkeys(blocks, strength)


def tiny_architecture() -> Architecture:
    """Return the architecture of the fixture `tiny_flux`."""
    return Architecture(
        double_blocks=2, single_blocks=3, width=32, latent_channels=8, guidance=True
    )


def tiny_inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return packed tokens [B, 4, 32], sigmas [B], text tokens [B, 5, 64] and pooled [B, 64]."""
    sigmas = torch.linspace(0.2, 0.9, batch)
    return (
        keyed_normal((batch, 4, 32), "packed"),
        sigmas,
        keyed_normal((batch, 5, 64), "tokens"),
        keyed_normal((batch, 64), "pooled"),
    )


def tiny_velocity(transformer: FluxTransformer2DModel) -> torch.Tensor:
    """Return the output [4, 4, 32] on the same inputs each time."""
    packed, sigmas, tokens, pooled = tiny_inputs(4)
    return predict_velocity(transformer, packed, sigmas, TextBatch(tokens, pooled), 2.5)


def write_tiny_folder(out: Path, transformer: FluxTransformer2DModel, nano_flux: Path) -> Path:
    """Return a manifest of a FluxPipeline folder with the tiny transformer, the rest of nano's."""
    folder = out / "base"
    shutil.copytree(nano_flux, folder, ignore=shutil.ignore_patterns("transformer", "captioner"))
    transformer.save_pretrained(folder / "transformer")
    files = tuple(
        WeightFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    manifest = out / "manifest.json"
    write_manifest(manifest, Manifest(str(folder), None, None, files))
    return manifest
