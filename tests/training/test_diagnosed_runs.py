"""Every condition that the diagnosis names, made to happen by real training.

Losses are made to go wrong on the small transformer, whose steps take milliseconds; what pictures
show, and a rate that breaks a trained model, on nano-flux.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image, ImageOps

from stages.contracts.params import ModelParams, TrainParams, load_params
from stages.contracts.tables import DIAGNOSIS, ENCODED, SCORES, read_table, write_table
from stages.encoding.encoded import INDEX, Encoded, Latents, Picture, write_latents, write_text
from stages.families.latents import encode_pictures
from stages.families.loading import load_text_encoders, load_vae
from stages.families.noise import keyed_normal
from stages.families.text import encode_prompts
from stages.judging.candidates import BASE_MODEL
from stages.judging.diagnosis import NOTHING_WRONG, diagnose
from stages.judging.findings import Evidence, Finding
from stages.judging.scoring import Score
from stages.judging.uses import uses_of_step
from stages.train import train
from stages.training.loop import Run, train_adapter
from tests.training.conftest import LATENT_SHAPE, attach, make_picture

ROOT = Path(__file__).parents[2]
SOUND = Score(BASE_MODEL, 900.0, 90.0, 0.1, 0.9, 40.0, 1.1, collapsed=False)
Diagnose = Callable[..., dict[str, Finding]]


def subject(name: str, spread: float) -> Picture:
    """Return a picture of the one subject of all pictures, with `spread` times its own content."""
    picture = make_picture(name)
    shared = keyed_normal(LATENT_SHAPE, "subject")
    mean = shared + spread * picture.latents.mean
    return replace(picture, latents=Latents(mean, picture.latents.std))


@pytest.fixture
def trained(
    tiny_flux: FluxTransformer2DModel,
    encoded: Encoded,
    params: TrainParams,
    model: ModelParams,
    tmp_path: Path,
) -> Diagnose:
    """Return a function that trains the small model and gives what is found, by name."""

    def run(
        *, pictures: int = 10, spread: float = 0.5, broken: int | None = None, **changes: object
    ) -> dict[str, Finding]:
        chosen = {"rank": 4, "alpha": 4.0, "caption_dropout": 0.0, "warmup_steps": 0}
        whole = {"checkpoint_every": 10**6, "sample_every": 10**6, "probe_pictures": 4}
        settings = params.model_copy(update={**chosen, **whole, **changes})
        attach(tiny_flux, settings)
        training = [subject(f"picture-{number}", spread) for number in range(pictures)]
        if broken is not None:
            latents = training[broken].latents
            wild = Latents(4 * latents.mean, latents.std)
            training[broken] = replace(training[broken], latents=wild)
        held_out = tuple(subject(f"held-out-{number}", spread) for number in range(3))
        data = replace(encoded, training=tuple(training), validation=held_out)
        journal = train_adapter(
            Run(tiny_flux, data, settings, model, lambda _: {}, list), tmp_path / "state"
        )
        uses = {row.step: uses_of_step(data, settings, row.step) for row in journal.history[1:]}
        found = diagnose(Evidence(journal.history, uses, [SOUND], BASE_MODEL))
        return {finding.name: finding for finding in found}

    return run


@pytest.mark.slow
def test_nothing_wrong(trained: Diagnose) -> None:
    """Ten pictures of one subject, a fitting rate, long enough."""
    found = trained(steps=120, validation_every=10, learning_rate=0.005)
    assert set(found) == {NOTHING_WRONG}


def test_under_fitting(trained: Diagnose) -> None:
    """The same with a third of the steps and less than half the rate: it was still falling."""
    found = trained(steps=40, validation_every=5, learning_rate=0.002)
    assert set(found) == {"under-fitting"}
    assert found["under-fitting"].numbers["last_quarter"] > 0.15


def test_plateau(trained: Diagnose) -> None:
    """A rate of nearly nothing: the loss never gets going."""
    found = trained(steps=40, validation_every=5, learning_rate=1e-7)
    assert set(found) == {"loss plateaued early"}
    assert "Raise train.learning_rate" in found["loss plateaued early"].advice


@pytest.mark.slow
def test_spikes_name_the_picture(trained: Diagnose) -> None:
    """One of twelve pictures has latents that are four times too large."""
    found = trained(
        steps=100, validation_every=10, learning_rate=0.005, batch=1, pictures=12, broken=3
    )
    assert set(found) == {"loss spikes"}
    assert "The picture is picture-3: 100.0 % of its uses spiked." in found["loss spikes"].words


@pytest.mark.slow
def test_over_fitting(trained: Diagnose) -> None:
    """Two pictures with little in common, learnt by heart."""
    found = trained(steps=150, validation_every=10, learning_rate=0.01, pictures=2, spread=2.0)
    assert set(found) == {"over-fitting"}
    assert found["over-fitting"].numbers["gap"] > 0.2


PROMPTS = {
    "sample": ["tok, a large robot in the middle, plain yellow background"],
    "plain": ["a large red circle in the middle, plain yellow background"],
}
Stage = Callable[..., tuple[set[str], pd.DataFrame]]


@pytest.fixture
def nano_stage(
    nano_flux: Path, weights_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stage:
    """Return a function that runs the stage on nano-flux: what it found, and its scores."""
    monkeypatch.setenv("BLOCKLENS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("BLOCKLENS_THREADS", "1")
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cpu")

    def run(pictures: list[tuple[Image.Image, str]], **changes: Any) -> tuple[set[str], Any]:
        write_nano_data(tmp_path / "encode", nano_flux, pictures)
        params = load_params(ROOT / "params.yaml")
        chosen = params.train.model_copy(update={"sample_every": 1000, **changes})
        train(
            chosen,
            params.model,
            params.sampling.model_copy(update={"steps": 8, "guidance": 1.0}),
            weights=weights_manifest,
            encoded=tmp_path / "encode",
            out=tmp_path / "out",
        )
        found = read_table(DIAGNOSIS, tmp_path / "out" / "diagnosis.csv")
        return set(found["finding"]), read_table(SCORES, tmp_path / "out" / "scores.csv")

    return run


def demo_pictures() -> list[tuple[Image.Image, str]]:
    """Return the demo's pictures that have captions, at 128 pixels; the first two are held out."""
    folder = ROOT / "data" / "demo"
    texts = [*sorted((folder / "validation").glob("*.txt"))[:2]]
    texts += sorted((folder / "train").glob("*.txt"))
    pictures = []
    for text in texts:
        (path,) = (path for path in text.parent.glob(f"{text.stem}.*") if path.suffix != ".txt")
        with Image.open(path) as image:
            pictures.append((square(image), f"tok, {text.read_text(encoding='utf-8').strip()}"))
    assert len(pictures) > 12
    return pictures


def square(image: Image.Image) -> Image.Image:
    """Return a picture at 128 x 128."""
    return ImageOps.fit(image.convert("RGB"), (128, 128), Image.Resampling.LANCZOS)


def write_nano_data(folder: Path, nano_flux: Path, pictures: list[tuple[Image.Image, str]]) -> None:
    """Encode pictures and captions as the stage does; the first two pictures are held out."""
    folder.mkdir()
    device = torch.device("cpu")
    vae, encoders = load_vae(nano_flux, device), load_text_encoders(nano_flux, "float32", device)
    rows = [("empty", "empty", "", "")]
    rows += [(kind, f"{kind}-0", "", text) for kind, (text,) in PROMPTS.items()]
    for number, (image, caption) in enumerate(pictures):
        split = "validation" if number < 2 else "train"
        rows.append(("image", f"picture-{number}", split, caption))
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1)
        mean, std = encode_pictures(vae, pixels.permute(2, 0, 1)[None])
        write_latents(folder / f"latents-picture-{number}.safetensors", Latents(mean[0], std[0]))
    for _, name, _, caption in rows:
        (text,) = encode_prompts(encoders, [caption], 32)
        write_text(folder / f"text-{name}.safetensors", text)
    table = pd.DataFrame(
        {
            "kind": kind,
            "name": name,
            "place": 0,
            "size_px": 128 if kind == "image" else 0,
            "split": split,
            "repeats": 1,
            "regularisation": False,
            "caption": caption,
            "trigger": "tok" if kind == "image" else "",
            "latents_file": f"latents-{name}.safetensors" if kind == "image" else "",
            "mirrored_file": "",
            "text_file": f"text-{name}.safetensors",
            "plain_caption": "",
            "plain_text_file": "",
        }
        for kind, name, split, caption in rows
    )
    write_table(ENCODED, table, folder / INDEX)


@pytest.mark.slow
def test_a_rate_that_is_far_too_high(nano_stage: Stage) -> None:
    """Thirty times the demo's: the trained base model is undone, with and without the trigger."""
    found, _ = nano_stage(
        demo_pictures(), steps=24, learning_rate=0.03, validation_every=2, checkpoint_every=24
    )
    assert {"diverged", "gradient norm grows", "loss oscillates", "bleeding"} <= found
    assert "loss plateaued early" not in found


@pytest.mark.slow
def test_trigger_without_effect(nano_stage: Stage) -> None:
    """Four steps at a thousandth of the demo's rate."""
    found, scores = nano_stage(
        demo_pictures()[:5], steps=4, learning_rate=1e-6, validation_every=1, checkpoint_every=4
    )
    assert "trigger without effect" in found
    assert scores["effect_mse"].iloc[-1] < 1


@pytest.mark.slow
def test_memorised(nano_stage: Stage) -> None:
    """Two pictures, one of them with the sample prompt as its caption, seen sixty times each."""
    held_out, others = demo_pictures()[:2], demo_pictures()[2:]
    mine = [(others[0][0], PROMPTS["sample"][0]), others[1]]
    found, scores = nano_stage(
        [*held_out, *mine],
        steps=60,
        learning_rate=0.002,
        batch=2,
        validation_every=15,
        checkpoint_every=60,
        caption_dropout=0.0,
    )
    assert "memorised" in found
    assert scores["nearest_training"].iloc[-1] < scores["nearest_training"].iloc[0]


@pytest.mark.slow
def test_collapse(nano_stage: Stage) -> None:
    """A set of black pictures: pictures become uniform, and the checkpoint is said to be that."""
    black = [(Image.new("RGB", (128, 128)), PROMPTS["sample"][0])] * 5
    found, scores = nano_stage(
        black, steps=40, learning_rate=0.004, validation_every=10, checkpoint_every=40
    )
    assert "collapse" in found
    assert scores["collapsed"].tolist() == [False, True]
