"""`fetch` accepts a whole base model, and names everything that a broken one lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.contracts.errors import WeightsError
from stages.contracts.params import FetchParams
from stages.families.weights import ensure_weights, read_manifest
from stages.fetch import fetch
from stages.runtime.files import sha256_file
from tests.families.single_file_sets import export_single_files, settings_only


def params(folder: Path) -> FetchParams:
    """Return settings for a local folder."""
    return FetchParams(folder=str(folder), repository=None, revision=None, single_files=None)


@pytest.fixture
def model(nano_flux: Path, tmp_path: Path) -> Path:
    """A copy of the embedded base model, to be broken."""
    folder = tmp_path / "model"
    shutil.copytree(nano_flux, folder, ignore=shutil.ignore_patterns("captioner"))
    return folder


def test_manifest_names_every_file_with_size_and_hash(nano_flux: Path, tmp_path: Path) -> None:
    """Later stages find the very bytes that fetch saw, in the folder where they lie."""
    fetch(params(nano_flux), out=tmp_path / "fetch")
    manifest = read_manifest(tmp_path / "fetch" / "manifest.json")
    assert (manifest.folder, manifest.repository, manifest.revision) == (str(nano_flux), None, None)
    paths = [file.path for file in manifest.files]
    assert paths == sorted(paths)
    assert "model_index.json" in paths
    assert "transformer/diffusion_pytorch_model.safetensors" in paths
    assert not [path for path in paths if path.startswith("captioner/")]
    for file in manifest.files:
        assert file.size_bytes == (nano_flux / file.path).stat().st_size
        assert file.sha256 == sha256_file(nano_flux / file.path)
    assert ensure_weights(tmp_path / "fetch" / "manifest.json") == nano_flux


def test_same_bytes_twice(nano_flux: Path, tmp_path: Path) -> None:
    """The manifest is in git: it changes only when the weights do."""
    for name in ("one", "two"):
        fetch(params(nano_flux), out=tmp_path / name)
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def point_to_shards(path: Path) -> None:
    """Put an index in the place of a weight file."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))


def pickle_instead(path: Path) -> None:
    """Put a pickle in the place of a weight file."""
    path.rename(path.with_name("pytorch_model.bin"))


BREAKAGES: list[tuple[str, Callable[[Path], object], list[str]]] = [
    ("vae/config.json", Path.unlink, ["vae/config.json: missing"]),
    ("scheduler/scheduler_config.json", Path.unlink, ["scheduler_config.json: missing"]),
    ("tokenizer/tokenizer.json", Path.unlink, ["tokenizer: holds none of tokenizer.json"]),
    ("text_encoder/model.safetensors", Path.unlink, ["text_encoder: holds no .safetensors file"]),
    ("text_encoder/model.safetensors", truncate, ["model.safetensors: truncated or broken"]),
    (
        "text_encoder_2/model.safetensors",
        point_to_shards,
        ["model-00001-of-00002.safetensors: missing, model.safetensors.index.json names it"],
    ),
    (
        "text_encoder/model.safetensors",
        pickle_instead,
        ["pytorch_model.bin: pickled weights", "text_encoder: holds no .safetensors file"],
    ),
    ("transformer", shutil.rmtree, ["transformer: missing, model_index.json names it"]),
    ("model_index.json", Path.unlink, ["model_index.json: missing"]),
    ("model_index.json", truncate, ["model_index.json: is not JSON"]),
]


@pytest.mark.parametrize(("name", "breakage", "messages"), BREAKAGES)
def test_each_kind_of_damage_is_named(
    model: Path, tmp_path: Path, name: str, breakage: Callable[[Path], object], messages: list[str]
) -> None:
    """The file and what is wrong with it are in the message, and no manifest is written."""
    breakage(model / name)
    with pytest.raises(WeightsError) as caught:
        fetch(params(model), out=tmp_path / "fetch")
    for message in messages:
        assert message in str(caught.value)
    assert not (tmp_path / "fetch").exists()


def test_folder_of_pickles_is_refused_by_name(tmp_path: Path) -> None:
    """No model_index.json, but checkpoints: they are named, in whatever case they are written."""
    for name in ("flux.ckpt", "ae.pt", "t5.BIN", "notes.txt"):
        (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError) as caught:
        fetch(params(tmp_path), out=tmp_path / "fetch")
    message = str(caught.value)
    assert "4 problems" in message
    assert f"{tmp_path / 'model_index.json'}: missing. Set fetch.folder to" in message
    for name in ("flux.ckpt", "ae.pt", "t5.BIN"):
        assert (
            f"{tmp_path / name}: pickled weights, which can run any program when they are read. "
            "Move it away, and put a .safetensors file in its place."
        ) in message


def test_folder_of_single_files_is_told_how_to_go_on(tmp_path: Path) -> None:
    """Weights as ComfyUI keeps them have a place in params.yaml."""
    (tmp_path / "flux1-dev.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError) as caught:
        fetch(params(tmp_path), out=tmp_path / "fetch")
    assert "Name single files (flux1-dev.safetensors) under fetch.single_files, see docs/" in str(
        caught.value
    )


def test_all_damage_is_said_at_once(model: Path, tmp_path: Path) -> None:
    """A download of hours is repeated once, not once per file."""
    (model / "vae" / "config.json").unlink()
    truncate(model / "transformer" / "diffusion_pytorch_model.safetensors")
    pickle_instead(model / "text_encoder" / "model.safetensors")
    shutil.rmtree(model / "tokenizer_2")
    with pytest.raises(WeightsError) as caught:
        fetch(params(model), out=tmp_path / "fetch")
    assert len(caught.value.problems) == 5


def test_missing_folder_says_which_parameter_names_it(tmp_path: Path) -> None:
    """The remedy is a key in params.yaml."""
    with pytest.raises(WeightsError, match=r"nowhere: does not exist\. Set fetch\.folder"):
        fetch(params(tmp_path / "nowhere"), out=tmp_path / "fetch")


def test_another_family_is_refused(model: Path, tmp_path: Path) -> None:
    """Stable Diffusion in the folder is found out before hours of training."""
    index = json.loads((model / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionPipeline"
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="is for StableDiffusionPipeline, not for FluxPipeline"):
        fetch(params(model), out=tmp_path / "fetch")


def test_single_files_are_a_base_model_like_any_other(nano_flux: Path, tmp_path: Path) -> None:
    """The manifest names the converted folder, and what it holds is what came in."""
    files = export_single_files(nano_flux, tmp_path / "files")
    settings = settings_only(nano_flux, tmp_path / "settings")
    given = params(settings).model_copy(update={"single_files": files})
    for name in ("one", "two"):
        fetch(given, out=tmp_path / name)
    fetch(params(nano_flux), out=tmp_path / "whole")
    one, two, whole = (tmp_path / name / "manifest.json" for name in ("one", "two", "whole"))
    assert one.read_bytes() == two.read_bytes()
    manifest = read_manifest(one)
    assert manifest.folder is not None
    assert Path(manifest.folder).parent == Path(files.converted)
    assert ensure_weights(one) == Path(manifest.folder)
    names = [file.path for file in manifest.files]
    assert names == [file.path for file in read_manifest(whole).files]


def test_command_line_fails_with_one_message(model: Path, tmp_path: Path) -> None:
    """As dvc.yaml runs it: exit code 1, the file and the remedy, no traceback."""
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    settings = tmp_path / "params.yaml"
    text = Path("params.yaml").read_text(encoding="utf-8")
    settings.write_text(text.replace("folder: data/nano-flux\n", f"folder: {model}\n"))
    result = subprocess.run(
        [sys.executable, "-m", "stages.fetch", "--params", settings, "--out", tmp_path / "fetch"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 1
    assert "vae: holds no .safetensors file" in result.stderr
    assert "Traceback" not in result.stderr
