"""A project with the tiny model, a LoRA that does something, and what the lens found of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from flows.overrides import apply_overrides
from mixer.__main__ import open_session
from mixer.actions import Session
from stages.adapters.compatibility import linear_shapes
from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.strengths import with_strengths
from stages.contracts.tables import SHARES, SLIM_STRENGTHS, write_table
from tests.sampling.planting import (
    plant_adapter,
    same_strength,
    tiny_architecture,
    write_tiny_folder,
)

ROOT = Path(__file__).parents[2]
BLOCKS = [str(block) for block in tiny_architecture().blocks]
RECOMMENDED = [0.0, 1.2, 0.0, 1.0, 0.75]


@pytest.fixture
def project(tmp_path: Path, tiny_flux: FluxTransformer2DModel, nano_flux: Path) -> Path:
    """A folder with params.yaml and what fetch, train, attribute and slim wrote, in small."""
    root = tmp_path / "project"
    for stage in ("fetch", "train", "attribute", "slim"):
        (root / "data" / stage).mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    apply_overrides(root, {"sampling.size_px": 64, "sampling.steps": 2})
    manifest = write_tiny_folder(root, tiny_flux, nano_flux)
    manifest.rename(root / "data/fetch/manifest.json")
    architecture = tiny_architecture()
    strengths = same_strength(architecture.blocks, 0.5)
    adapter = plant_adapter(architecture, linear_shapes(tiny_flux), strengths)
    write_adapter(root / "data/train/adapter.safetensors", adapter)
    shares = pd.DataFrame({"block": BLOCKS, "share": [0.3, 0.25, 0.2, 0.15, 0.1]})
    shares = shares.assign(low=0.0, high=0.5, prior=0.2, plain_share=0.2)
    write_table(SHARES, shares, root / "data/attribute/shares.csv")
    kept = pd.DataFrame({"block": BLOCKS, "strength": RECOMMENDED})
    write_table(SLIM_STRENGTHS, kept, root / "data/slim/strengths.csv")
    return root


@pytest.fixture
def other(project: Path) -> Path:
    """The file of another LoRA of three blocks, which has weights for a text encoder as well."""
    source = read_adapter(project / "data/train/adapter.safetensors")
    part = with_strengths(source, dict.fromkeys(source.blocks[1:4], -0.7))
    file = project / "other.safetensors"
    write_adapter(file, part)
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    text = {name.format("A"): torch.ones(2, 8), name.format("B"): torch.ones(8, 2)}
    save_file(load_file(file) | text, file)
    return file


@pytest.fixture
def session(project: Path) -> Iterator[Session]:
    """The project's mixer, loaded."""
    with ThreadPoolExecutor(1) as executor:
        yield open_session(project, [], project / "mixes", executor)
