"""Models and folders that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from filelock import FileLock

from stages.families.weights import Manifest, WeightFile, write_manifest
from stages.runtime.files import sha256_file
from tests.small_run import clone, reproduce, stages_run

ROOT = Path(__file__).parents[1]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
torch.use_deterministic_algorithms(True)


@pytest.fixture
def tiny_flux() -> FluxTransformer2DModel:
    """A FLUX transformer of 2 double and 3 single blocks in which every layer has an effect."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return transformer.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def nano_flux() -> Path:
    """The folder of the embedded base model."""
    return ROOT / "data" / "nano-flux"


@pytest.fixture(scope="session")
def weights_manifest(nano_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of the embedded base model, as `fetch` writes it."""
    files = [
        WeightFile(path.relative_to(nano_flux).as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(nano_flux.rglob("*"))
        if path.is_file()
    ]
    manifest = tmp_path_factory.mktemp("fetch") / "manifest.json"
    write_manifest(manifest, Manifest(str(nano_flux), None, None, tuple(files)))
    return manifest


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the project after one undisturbed `dvc repro`, in small. Copy it to change it.

    One for all processes of pytest-xdist: whoever asks first makes it, the others wait.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / "small-run", root / "small-run.done"
    with FileLock(root / "small-run.lock"):
        if not done.exists():
            assert not folder.exists(), "another process could not make the small run"
            assert len(stages_run(reproduce(clone(folder)))) == 11
            done.touch()
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that no process still has one when others are done.

    That is, in several processes; in a row the quick ones go first, as they are found.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
