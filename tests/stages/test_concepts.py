"""Concepts, repeats and regularisation, from the folders that a person has to the trained LoRA."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from diffusers import FluxTransformer2DModel

from stages.adapters.files import read_adapter
from stages.caption import caption
from stages.contracts.params import Params, load_params
from stages.contracts.tables import HISTORY, read_table
from stages.encode import encode
from stages.encoding.encoded import read_encoded
from stages.families.weights import Manifest, WeightFile, write_manifest
from stages.prepare import prepare
from stages.runtime.files import sha256_file
from stages.train import train
from stages.training.batches import picture_of, step_samples
from tests.imaging.drawings import scenery

ROOT = Path(__file__).parents[2]
FOLDERS = {"hat": 2, "coat": 2, "people": 3}
"""Concept -> its pictures."""


@pytest.fixture
def weights(tiny_flux: FluxTransformer2DModel, nano_flux: Path, tmp_path: Path) -> Path:
    """A manifest of the embedded model with the tiny transformer in place of its own."""
    folder = tmp_path / "base"
    shutil.copytree(nano_flux, folder, ignore=shutil.ignore_patterns("transformer", "captioner"))
    tiny_flux.save_pretrained(folder / "transformer")
    files = tuple(
        WeightFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    write_manifest(tmp_path / "manifest.json", Manifest(str(folder), None, None, files))
    return tmp_path / "manifest.json"


@pytest.fixture
def params() -> Params:
    """The demo's params for small pictures with captions, three concepts and a short training."""
    whole = load_params(ROOT / "params.yaml").model_dump()
    whole["prepare"] |= {
        "size_px": 128,
        "min_side_px": 64,
        "kind": "style",
        "concepts": [
            {"folder": "coat", "repeats": 3, "regularisation": False},
            {"folder": "people", "repeats": 1, "regularisation": True},
        ],
    }
    whole["caption"] |= {"captioner": "sidecar"}
    whole["encode"] |= {"sizes_px": [64, 128], "flip": True, "without_trigger": True}
    whole["sampling"] |= {"size_px": 64, "steps": 2}
    whole["train"] |= {
        "rank": 2,
        "steps": 8,
        "batch": 4,
        "warmup_steps": 2,
        "masked_loss": True,
        "output_preservation": 0.5,
        "validation_every": 4,
        "checkpoint_every": 8,
        "sample_every": 8,
    }
    return Params.model_validate(whole)


def draw_folders(root: Path) -> None:
    """Write the pictures of all concepts with their captions, and one held-out picture."""
    seed = 0
    for concept, count in FOLDERS.items():
        (root / "train" / concept).mkdir(parents=True)
        for number in range(count):
            seed += 1
            path = root / "train" / concept / f"{number}.png"
            scenery(150, 150, seed).save(path)
            path.with_suffix(".txt").write_text(f"a {concept} at noon, number {number}")
    (root / "validation").mkdir()
    scenery(150, 150, 99).save(root / "validation" / "held-out.png")
    (root / "validation" / "held-out.txt").write_text("a hat at noon")


def run(params: Params, weights: Path, root: Path) -> None:
    """Run the stages from prepare to train, as DVC does."""
    images, validation = root / "train", root / "validation"
    prepare(params.prepare, images=images, validation=validation, out=root / "prepare")
    caption(
        params.caption,
        params.model.text_tokens,
        weights=weights,
        images=root / "prepare",
        captions=images,
        validation_captions=validation,
        captioner=root,
        out=root / "caption",
    )
    drawing = params.sampling.steps, params.sampling.guidance, params.sampling.batch
    values = params.encode, params.model, params.prompts.without_trigger, *drawing
    captions = root / "caption" / "captions.csv"
    encode(
        *values, weights=weights, images=root / "prepare", captions=captions, out=root / "encode"
    )
    shared = params.train, params.model, params.sampling
    train(*shared, weights=weights, encoded=root / "encode", out=root / "trained")


def test_concepts_reach_the_lora(
    params: Params, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeats are uses per epoch, regularisation is its share of the samples, captions fit."""
    monkeypatch.setenv("BLOCKLENS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cpu")
    monkeypatch.setenv("BLOCKLENS_THREADS", "1")
    draw_folders(tmp_path)
    run(params, weights, tmp_path)
    data = read_encoded(tmp_path / "encode")
    # An epoch of the others is 2 + 3 x 2 uses; with every second sample theirs, 16 samples.
    samples = [s for step in range(1, 5) for s in step_samples(data, params.train, step)]
    uses = Counter(picture_of(data, sample).name for sample in samples)
    assert {name: uses[name] for name in ("hat-0", "hat-1", "coat-0", "coat-1")} == {
        "hat-0": 1,
        "hat-1": 1,
        "coat-0": 3,
        "coat-1": 3,
    }
    people = [uses[f"people-{number}"] for number in range(3)]
    assert sum(people) == 8
    assert max(people) - min(people) <= 1
    assert {picture.caption for picture in data.training} == {
        f"tok, a {concept} at noon, number {number}"
        for concept in ("hat", "coat")
        for number in range(2)
    }
    assert data.regularisation[0].caption == "a people at noon, number 0", "no trigger"
    assert data.regularisation[0].plain_text is None
    assert all(picture.plain_text is not None for picture in data.training)
    assert all(picture.mirrored is None for picture in data.training), "captions speak of numbers"
    history = read_table(HISTORY, tmp_path / "trained" / "history.csv").iloc[1:]
    assert history["regularisation_loss"].notna().all()
    assert history["preservation_loss"].notna().all()
    assert history["preservation_loss"].iloc[0] == 0, "the adapter starts without effect"
    assert history["preservation_loss"].iloc[-1] > 0
    metrics = json.loads((tmp_path / "trained" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["regularisation_loss"] == pytest.approx(
        history["regularisation_loss"].mean(), rel=1e-5
    )
    assert metrics["preservation_loss"] > 0
    assert read_adapter(tmp_path / "trained" / "adapter.safetensors").modules
