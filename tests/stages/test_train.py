"""The stage as DVC runs it: what it writes, and what a kill changes (nothing)."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel
from PIL import Image

from stages.adapters.files import read_adapter
from stages.contracts.errors import DatasetError, HardwareError, ParamsError, TrainingError
from stages.contracts.params import Params, load_params
from stages.contracts.tables import (
    DIAGNOSIS,
    ENCODED,
    HISTORY,
    SCORES,
    read_table,
    write_table,
)
from stages.encoding.encoded import INDEX, Latents, write_latents, write_text
from stages.families.weights import Manifest, WeightFile, write_manifest
from stages.optimisation import schedule
from stages.runtime.files import sha256_file
from stages.train import train
from tests.training.conftest import make_picture, make_text

ROOT = Path(__file__).parents[2]
SHORT = {
    "rank": 2,
    "alpha": 1.0,
    "steps": 8,
    "batch": 2,
    "warmup_steps": 2,
    "learning_rate": 0.01,
    "validation_every": 2,
    "checkpoint_every": 4,
    "sample_every": 4,
}


@pytest.fixture
def weights(tiny_flux: FluxTransformer2DModel, nano_flux: Path, tmp_path: Path) -> Path:
    """A manifest of a base model with the tiny transformer."""
    folder = tmp_path / "base"
    tiny_flux.save_pretrained(folder / "transformer")
    for name in ("vae", "scheduler"):
        shutil.copytree(nano_flux / name, folder / name)
    files = tuple(
        WeightFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    write_manifest(tmp_path / "manifest.json", Manifest(str(folder), None, None, files))
    return tmp_path / "manifest.json"


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    """A folder as encode writes it: four training pictures, one held-out, one sample prompt."""
    return write_encoded(tmp_path / "encode")


def write_encoded(folder: Path, *, channels: int = 8, broken: str = "") -> Path:
    """Write latents, texts and index; the latents of the picture `broken` are no numbers."""
    folder.mkdir(exist_ok=True)
    rows = [("sample", "sample-0", "", "tok"), ("empty", "empty", "", "")]
    rows += [("plain", f"plain-{number}", "", f"shape {number}") for number in range(2)]
    rows += [("image", name, "train", f"tok, {name}") for name in "abcd"]
    rows.append(("image", "held-out", "validation", "tok, held-out"))
    table = pd.DataFrame(
        {
            "kind": kind,
            "name": name,
            "place": 0,
            "size_px": 32 if kind == "image" else 0,
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
    for kind, name, _, caption in rows:
        write_text(folder / f"text-{name}.safetensors", make_text(caption))
        if kind == "image":
            latents = make_picture(name).latents
            mean = latents.mean * (float("nan") if name == broken else 1)
            cut = Latents(mean[:channels], latents.std[:channels])
            write_latents(folder / f"latents-{name}.safetensors", cut)
    write_table(ENCODED, table, folder / INDEX)
    return folder


def params_file(folder: Path, **changes: Any) -> Path:
    """Write the demo's params with a short training."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["train"] |= SHORT | changes
    content["sampling"] |= {"size_px": 64, "steps": 2}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(weights: Path, encoded: Path, out: Path, **changes: Any) -> dict[str, bytes]:
    """Run the stage in this process and return its files."""
    params: Params = load_params(params_file(out.parent, **changes))
    train(params.train, params.model, params.sampling, weights=weights, encoded=encoded, out=out)
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder and their bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep states out of the repository, and one thread: the machine may be shared."""
    monkeypatch.setenv("BLOCKLENS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("BLOCKLENS_THREADS", "1")
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cpu")
    return tmp_path / "state" / "train"


def test_writes_what_it_promises(weights: Path, encoded: Path, tmp_path: Path) -> None:
    """Adapter, checkpoints, samples, history and metrics, and they agree with each other."""
    files = run(weights, encoded, tmp_path / "out")
    assert set(files) == {
        "adapter.safetensors",
        "checkpoints/step-0004.safetensors",
        "checkpoints/step-0008.safetensors",
        "diagnosis.csv",
        "history.csv",
        "metrics.json",
        "scores.csv",
        "sheet.png",
        *(f"samples/step-{step:04d}-0.png" for step in (0, 4, 8)),
    }
    history = read_table(HISTORY, tmp_path / "out" / "history.csv").set_index("step")
    metrics = json.loads(files["metrics.json"])
    step = metrics["selected_step"]
    assert metrics["validation_loss_base"] == pytest.approx(history.validation_loss[0], rel=1e-5)
    assert metrics["validation_loss"] == pytest.approx(history.validation_loss[step], rel=1e-5)
    assert history.validation_loss[[4, 8]].idxmin() == step
    ratio = metrics["validation_loss"] / metrics["validation_loss_base"]
    assert metrics["improvement"] == pytest.approx(1 - ratio, abs=1e-5)
    assert files["adapter.safetensors"] == files[f"checkpoints/step-{step:04d}.safetensors"]
    assert metrics["adapter_bytes"] == len(files["adapter.safetensors"])
    adapter = read_adapter(tmp_path / "out" / "adapter.safetensors")
    assert len(adapter.modules) == 2 * 14 + 3 * 6
    assert metrics["trainable_parameters"] == adapter.parameters
    assert adapter.metadata["blocklens.step"] == str(step)
    with Image.open(tmp_path / "out" / "samples" / "step-0008-0.png") as picture:
        assert picture.size == (64, 64)


def test_same_run_same_bytes(weights: Path, encoded: Path, tmp_path: Path, own_state: Path) -> None:
    """Twice the same inputs, twice the same bytes; and no state is left of a finished run."""
    assert run(weights, encoded, tmp_path / "one") == run(weights, encoded, tmp_path / "two")
    assert list(own_state.iterdir()) == []


def test_steps_from_the_pictures(
    weights: Path, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is a number by the time anything depends on it; four pictures would be 500 steps."""
    monkeypatch.setattr(schedule, "STEPS_PER_PICTURE", 1)
    monkeypatch.setattr(schedule, "FEWEST_STEPS", 2)
    run(weights, encoded, tmp_path / "out", steps="auto")
    assert read_table(HISTORY, tmp_path / "out" / "history.csv")["step"].max() == 4
    adapter = read_adapter(tmp_path / "out" / "adapter.safetensors")
    assert adapter.metadata["ss_max_train_steps"] == "4"


def test_phases(weights: Path, encoded: Path, tmp_path: Path) -> None:
    """Eight steps of rank 2, then three of rank 4: all checkpoints are scored on one model."""
    phase = {"rank": 4, "alpha": 4.0, "steps": 3, "learning_rate": 0.002}
    files = run(weights, encoded, tmp_path / "out", phases=[phase], ema_decay=0.5, select=11)
    history = read_table(HISTORY, tmp_path / "out" / "history.csv").set_index("step")
    assert history.index.max() == 11
    scores = read_table(SCORES, tmp_path / "out" / "scores.csv")
    assert sorted(set(scores["step"])) == [0, 4, 8, 11]
    adapters = {
        step: read_adapter(tmp_path / "out" / "checkpoints" / f"step-{step:04d}.safetensors")
        for step in (8, 11)
    }
    assert {step: adapter.rank for step, adapter in adapters.items()} == {8: 2, 11: 4}
    numbers = {step: adapter.metadata["blocklens.phase"] for step, adapter in adapters.items()}
    assert numbers == {8: "1", 11: "2"}
    metrics = json.loads(files["metrics.json"])
    assert metrics["selected_step"] == 11
    assert metrics["trainable_parameters"] == adapters[11].parameters


def test_select_last(weights: Path, encoded: Path, tmp_path: Path) -> None:
    """Who asks for the last checkpoint gets it."""
    files = run(weights, encoded, tmp_path / "out", select="last")
    assert json.loads(files["metrics.json"])["selected_step"] == 8


def test_select_a_step(weights: Path, encoded: Path, tmp_path: Path) -> None:
    """The checkpoint that was asked for is shipped, marked and explained."""
    files = run(weights, encoded, tmp_path / "out", select=4)
    assert files["adapter.safetensors"] == files["checkpoints/step-0004.safetensors"]
    reason = json.loads(files["metrics.json"])["selected_because"]
    assert reason.startswith("step 4 of 8: the one train.select asks for")
    scores = read_table(SCORES, tmp_path / "out" / "scores.csv").set_index("step")
    assert scores["chosen"].to_dict() == {0: False, 4: True, 8: False}


def test_a_step_without_checkpoint_is_refused_before_training(
    weights: Path, encoded: Path, tmp_path: Path, own_state: Path
) -> None:
    """Hours of training must not end with that."""
    with pytest.raises(ParamsError, match="no checkpoint is kept after step 5"):
        run(weights, encoded, tmp_path / "out", select=5)
    assert not own_state.exists()


def test_every_checkpoint_is_scored_against_the_base_model(
    weights: Path, encoded: Path, tmp_path: Path
) -> None:
    """Losses are the history's, and the effects are those of the pictures that were kept."""
    files = run(weights, encoded, tmp_path / "out", sample_every=8)
    history = read_table(HISTORY, tmp_path / "out" / "history.csv").set_index("step")
    scores = read_table(SCORES, tmp_path / "out" / "scores.csv").set_index("step")
    assert list(scores.index) == [0, 4, 8]
    for name in ("validation_loss", "probe_loss"):
        assert scores[name].to_dict() == history.loc[[0, 4, 8], name].to_dict()
    base, last = (
        np.asarray(Image.open(tmp_path / "out" / f"samples/step-{step:04d}-0.png"), dtype=float)
        for step in (0, 8)
    )
    assert scores.effect_mse[8] == pytest.approx(((last - base) ** 2).mean())
    assert scores.effect_mse[0] == scores.plain_mse[0] == 0
    assert scores.effect_mse[4] > 0, "drawn at the end where training had not"
    assert scores.bleed[8] == pytest.approx(scores.plain_mse[8] / scores.effect_mse[8])
    findings = read_table(DIAGNOSIS, tmp_path / "out" / "diagnosis.csv")["finding"]
    assert set(json.loads(files["metrics.json"])["findings"].split("; ")) == set(findings)


def test_the_moving_average_is_scored_and_can_be_chosen(
    weights: Path, encoded: Path, tmp_path: Path
) -> None:
    """A row of its own beside the weights' for each checkpoint, in the sheet too; best of all."""
    files = run(weights, encoded, tmp_path / "out", ema_decay=0.9, sample_every=4)
    history = read_table(HISTORY, tmp_path / "out" / "history.csv").set_index("step")
    scores = read_table(SCORES, tmp_path / "out" / "scores.csv").set_index(["step", "weights"])
    kinds = [(0, "raw"), (4, "ema"), (4, "raw"), (8, "ema"), (8, "raw")]
    assert list(scores.index) == kinds
    assert scores.validation_loss[8, "ema"] == history.validation_loss_ema[8]
    assert scores.probe_loss[8, "ema"] == history.probe_loss_ema[8]
    assert scores.effect_mse[8, "ema"] > 0
    assert scores.effect_mse[8, "ema"] != scores.effect_mse[8, "raw"], "drawn with its own weights"
    metrics = json.loads(files["metrics.json"])
    best = scores.validation_loss.drop((0, "raw")).idxmin()
    assert (metrics["selected_step"], metrics["selected_weights"]) == best
    assert scores.index[scores.chosen].tolist() == [best]
    names = {"raw": "raw weights", "ema": "moving average"}
    assert metrics["selected_because"].startswith(f"step {best[0]} of 8, {names[best[1]]}: ")
    ending = "-ema" if best[1] == "ema" else ""
    kept = files[f"checkpoints/step-{best[0]:04d}{ending}.safetensors"]
    assert files["adapter.safetensors"] == kept
    run(weights, encoded, tmp_path / "without", sample_every=4)
    with_averages, without = (
        Image.open(tmp_path / name / "sheet.png").height for name in ("out", "without")
    )
    assert with_averages - without == 2 * 218, "two rows more"


def test_last_is_the_weights_whatever_the_average(
    weights: Path, encoded: Path, tmp_path: Path
) -> None:
    """The average is kept beside them, never in their place."""
    files = run(weights, encoded, tmp_path / "out", ema_decay=0.9, select="last")
    assert files["adapter.safetensors"] == files["checkpoints/step-0008.safetensors"]
    assert json.loads(files["metrics.json"])["selected_weights"] == "raw"


def test_more_checkpoints_than_the_sheet_holds_are_refused(
    weights: Path, encoded: Path, tmp_path: Path
) -> None:
    """Each has two rows where an average is kept."""
    many: dict[str, Any] = {"steps": 125, "checkpoint_every": 1, "validation_every": 1}
    with pytest.raises(ParamsError, match="gives 125 checkpoints; the sheet has room for 124"):
        run(weights, encoded, tmp_path / "out", ema_decay=0.9, **many)


@pytest.mark.slow
def test_kill_changes_nothing(
    weights: Path, encoded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`kill -9` in the middle, run again: the same files, byte for byte, as undisturbed."""
    killed_process(weights, encoded, tmp_path / "out", steps=60)
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.INFO):
        resumed = run(weights, encoded, tmp_path / "out", steps=60)
    assert re.search(r"continuing after step \d+ from", caplog.text)
    assert resumed == run(weights, encoded, tmp_path / "undisturbed", steps=60)


def killed_process(weights: Path, encoded: Path, out: Path, **changes: Any) -> None:
    """Run the stage in a process that saves after every step; kill it after step 7 or later."""
    command = [sys.executable, "-m", "stages.train", "--params"]
    command += [str(params_file(out.parent, **changes)), "--weights", str(weights)]
    command += ["--encoded", str(encoded), "--out", str(out)]
    environment = {**os.environ, "BLOCKLENS_SAVE_EVERY_S": "0"}
    states = Path(environment["BLOCKLENS_STATE"])
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            names = [path.name for path in states.glob("train/*/state-*.safetensors")]
            if any(int(name.split("-")[1]) >= 7 for name in names):
                process.kill()
            time.sleep(0.05)
        assert process.stderr is not None
        assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()


@pytest.mark.parametrize("what", ["seed", "data", "code"])
def test_another_runs_state_is_not_used(
    weights: Path,
    encoded: Path,
    tmp_path: Path,
    own_state: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    """A seed, a picture or a line of code changed after the kill: the run starts from the base."""
    monkeypatch.setattr("stages.train.clear_state", lambda _: None)
    run(weights, encoded, tmp_path / "killed", steps=1, warmup_steps=0)
    changes: dict[str, Any] = {"steps": 1, "warmup_steps": 0}
    if what == "seed":
        changes["seed"] = 5
    elif what == "data":
        write_text(encoded / "text-a.safetensors", make_text("another caption"))
    else:
        monkeypatch.setattr("stages.runtime.fingerprint.sha256_file", lambda path: path.name)
    with caplog.at_level(logging.INFO):
        run(weights, encoded, tmp_path / "out", **changes)
    assert "continuing after step" not in caplog.text
    assert "1 unfinished run of other settings, data or code" in caplog.text
    assert len(list(own_state.iterdir())) == 2


def test_adapter_loads_into_the_base_model(
    weights: Path, encoded: Path, tmp_path: Path, tiny_flux: FluxTransformer2DModel
) -> None:
    """Diffusers reads the file and takes it at its trained strength (alpha 1, rank 2)."""
    run(weights, encoded, tmp_path / "out")
    adapter = read_adapter(tmp_path / "out" / "adapter.safetensors")
    before = {name: value.clone() for name, value in tiny_flux.state_dict().items()}
    tiny_flux.load_lora_adapter(str(tmp_path / "out" / "adapter.safetensors"))
    tiny_flux.fuse_lora()
    tiny_flux.unload_lora()
    for module, pair in adapter.modules.items():
        change = tiny_flux.get_parameter(f"{module}.weight") - before[f"{module}.weight"]
        torch.testing.assert_close(change, pair.delta(), atol=1e-6, rtol=1e-4)


def test_foreign_latents_are_refused(weights: Path, tmp_path: Path, encoded: Path) -> None:
    """Latents of another autoencoder: one message, and the earlier output stays."""
    before = run(weights, encoded, tmp_path / "out")
    other = write_encoded(tmp_path / "other", channels=4)
    with pytest.raises(DatasetError, match="latents have 4 channels, the transformer 8"):
        run(weights, other, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("name", "probed", "step"), [("c", 0, "[1-9]"), ("c", 4, "0"), ("held-out", 0, "0")]
)
def test_broken_number_stops_and_is_named(
    weights: Path, tmp_path: Path, name: str, probed: int, step: str
) -> None:
    """NaN does not train on: step, picture and noise level are named, and nothing is written."""
    broken = write_encoded(tmp_path / "encode", broken=name)
    named = rf"step {step}, picture {name}, sigma 0\.\d+: loss is nan"
    with pytest.raises(TrainingError, match=named):
        run(weights, broken, tmp_path / "out", probe_pictures=probed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("function", "where"), [("load_transformer", "loading"), ("judge", "scoring")]
)
def test_out_of_memory_beside_the_steps(
    weights: Path,
    encoded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    where: str,
) -> None:
    """A base that does not fit, or pictures that do not: advice there, too."""

    def allocate(*_: object) -> torch.Tensor:
        return torch.empty(10**15, dtype=torch.uint8)

    monkeypatch.setattr(f"stages.train.{function}", allocate)
    with pytest.raises(TrainingError, match=rf"while {where}: .*[\s\S]*model\.quantisation"):
        run(weights, encoded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_announces_what_it_will_do(
    weights: Path, encoded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Modules, parameters, steps and pictures are said before the first step."""
    with caplog.at_level(logging.INFO):
        run(weights, encoded, tmp_path / "out")
    assert "LoRA of rank 2, alpha 1 on 46 modules" in caplog.messages[0]
    assert "8 steps of 2 from 4 pictures at 32 pixels (4 epochs), 1 held out" in caplog.messages[1]


def test_a_board_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before weights or pictures are so much as looked for."""
    monkeypatch.setattr("stages.training.board.find_spec", lambda _: None)
    monkeypatch.setenv("BLOCKLENS_TENSORBOARD", str(tmp_path / "board"))
    with pytest.raises(HardwareError, match=r"blocklens\[live\]"):
        run(tmp_path / "missing.json", tmp_path / "missing", tmp_path / "out")
