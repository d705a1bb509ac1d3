"""The whole graph, in small, in clones: the same bytes whatever happens on the way."""

from __future__ import annotations

import html
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import FluxPipeline
from PIL import Image

from tests.small_run import (
    clone,
    environment,
    read_params,
    reproduce,
    run,
    stages_run,
    write_params,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reproduced(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a clone after one undisturbed `dvc repro`."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("first") / "clone", symlinks=True)


def test_nothing_is_left_to_do_afterwards(reproduced: Path) -> None:
    """A second `dvc repro` runs nothing and `dvc status` is clean."""
    assert stages_run(reproduce(reproduced)) == []
    assert "up to date" in run(reproduced, "dvc", "status").stdout


def test_diffusers_draws_the_same_pictures(
    reproduced: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The full and the slim adapter load into FluxPipeline and show there what we showed."""
    params = read_params(reproduced)
    sampling, prompts = params["sampling"], params["prompts"]
    pipeline = FluxPipeline.from_pretrained(reproduced / "data/nano-flux", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    slim = "data/slim/images/held-out-0-100"
    for adapter, prompt, seed, picture in (
        ("data/train/adapter", "develop", 0, "data/render/images/develop-0-0/full.png"),
        ("data/train/adapter", "held_out", 100, f"{slim}/full.png"),
        ("data/slim/adapter-slim", "held_out", 100, f"{slim}/slim.png"),
    ):
        pipeline.load_lora_weights(reproduced / f"{adapter}.safetensors")
        theirs = pipeline(
            prompts[prompt][0],
            height=sampling["size_px"],
            width=sampling["size_px"],
            num_inference_steps=sampling["steps"],
            guidance_scale=sampling["guidance"],
            max_sequence_length=params["model"]["text_tokens"],
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        pipeline.unload_lora_weights()
        with Image.open(reproduced / picture) as ours:
            difference = np.subtract(theirs, ours, dtype=int)
        assert np.abs(difference).max() <= 1
    # diffusers says of every adapter without text encoder weights that it has none; no more.
    none_for_text = "No LoRA keys associated to CLIPTextModel"
    loading = [record for record in caplog.records if record.name.startswith("diffusers.loaders")]
    assert {record.getMessage()[: len(none_for_text)] for record in loading} == {none_for_text}


def test_the_snippet_of_the_report_draws_the_slim_picture(reproduced: Path, tmp_path: Path) -> None:
    """What a person copies from the page runs as it stands, and draws what stage slim drew."""
    page = (reproduced / "data/report/index.html").read_text(encoding="utf-8")
    code = html.unescape(page.partition("<code>import torch\n")[2].partition("</code>")[0])
    (tmp_path / "data").symlink_to(reproduced / "data")
    done = subprocess.run(
        [sys.executable, "-c", f"import torch\n{code}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    slim = reproduced / "data/slim/images/held-out-0-100/slim.png"
    with Image.open(tmp_path / "slim.png") as theirs, Image.open(slim) as ours:
        assert np.abs(np.subtract(theirs, ours, dtype=int)).max() <= 1


def kill_training(folder: Path) -> None:
    """Start `dvc repro`, and kill -9 its whole group once training has saved some state."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 900
    while not list((folder / ".blocklens" / "train").rglob("*.safetensors")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "training never saved its state"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_clone_killed_in_training_ends_in_the_same_bytes(
    reproduced: Path, tmp_path: Path
) -> None:
    """Neither another folder nor kill -9 changes dvc.lock, and so no output."""
    other = clone(tmp_path / "elsewhere")
    kill_training(other)
    assert not (other / "data/train/adapter.safetensors").exists()
    assert "train" in stages_run(reproduce(other))
    assert (other / "dvc.lock").read_bytes() == (reproduced / "dvc.lock").read_bytes()
    assert not list((other / ".blocklens" / "train").rglob("*.safetensors"))


def test_the_prefect_flow_ends_in_the_same_bytes(reproduced: Path, tmp_path: Path) -> None:
    """Through Prefect or not: one graph, one lock file."""
    other = clone(tmp_path / "flow")
    done = run(other, "flows.pipeline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (other / "dvc.lock").read_bytes() == (reproduced / "dvc.lock").read_bytes()


def changed_stages(folder: Path, change: Callable[[Path], None], undo: Path) -> set[str]:
    """Return the stages that DVC says a change touches directly, then undo the change."""
    before = undo.read_bytes()
    change(folder)
    try:
        status = run(folder, "dvc", "status", "--json").stdout
        return set(yaml.safe_load(status))
    finally:
        undo.write_bytes(before)


def test_a_learning_rate_touches_training_first(reproduced: Path) -> None:
    """Nothing before `train` is run again; the report shows every parameter."""

    def change(folder: Path) -> None:
        params = read_params(folder)
        params["train"]["learning_rate"] *= 2
        write_params(folder, params)

    assert changed_stages(reproduced, change, reproduced / "params.yaml") == {"train", "report"}


def test_a_comment_in_the_heat_map_does_not_touch_training(reproduced: Path) -> None:
    """A file boundary is a cache boundary."""
    module = reproduced / "stages/imaging/heatmap.py"

    def change(_: Path) -> None:
        module.write_text(module.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")

    assert changed_stages(reproduced, change, module) <= {"evaluate", "report"}


def test_a_colour_map_reruns_evaluate_and_report_alone(reproduced: Path) -> None:
    """Prettier pictures cost seconds, not a training."""
    params = read_params(reproduced)
    params["evaluate"]["colour_map"] = "viridis"
    write_params(reproduced, params)
    assert stages_run(reproduce(reproduced)) == ["evaluate", "report"]


def test_a_new_picture_reruns_from_prepare(reproduced: Path) -> None:
    """The base weights are not fetched again, everything after the pictures is made again."""
    raw = reproduced / read_params(reproduced)["prepare"]["images"]
    picture = next(path for path in sorted(raw.iterdir()) if path.suffix == ".png")
    with Image.open(picture) as opened:
        opened.rotate(180).save(raw / "upside-down.png")
    assert stages_run(reproduce(reproduced)) == [
        "prepare",
        "caption",
        "encode",
        "train",
        "split",
        "render",
        "attribute",
        "evaluate",
        "slim",
        "report",
    ]


def test_a_bad_picture_stops_the_run_and_costs_nothing(reproduced: Path) -> None:
    """DVC took `prepare`'s outputs away before the stage could refuse; its cache has them."""
    raw = reproduced / read_params(reproduced)["prepare"]["images"]
    (raw / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n truncated")
    adapter = reproduced / "data/train/adapter.safetensors"
    before = adapter.read_bytes()
    done = run(reproduced, "dvc", "repro")
    assert done.returncode != 0
    assert "broken.png" in done.stderr + done.stdout
    assert adapter.read_bytes() == before
    (raw / "broken.png").unlink()
    assert stages_run(reproduce(reproduced)) == []
    assert "up to date" in run(reproduced, "dvc", "status").stdout
