"""Single files become the very model that they were taken from, or one message says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.contracts.errors import WeightsError
from stages.contracts.params import ModelParams, SingleFilesParams
from stages.families import single_files
from stages.families.loading import load_text_encoders, load_transformer, load_vae
from stages.families.single_files import convert_single_files
from tests.families.single_file_sets import (
    component_tensors,
    export_single_files,
    settings_only,
)

MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=32)


@pytest.fixture
def settings(nano_flux: Path, tmp_path: Path) -> Path:
    """Configs and tokenizers of the embedded model, without weights."""
    return settings_only(nano_flux, tmp_path / "settings")


@pytest.fixture
def files(nano_flux: Path, tmp_path: Path) -> SingleFilesParams:
    """The embedded model's weights as single files."""
    return export_single_files(nano_flux, tmp_path / "files")


def test_every_tensor_comes_through_bit_for_bit(
    nano_flux: Path, files: SingleFilesParams, settings: Path
) -> None:
    """Fused and renamed on the way out, split and named back on the way in."""
    folder = convert_single_files(files, settings)
    before, after = component_tensors(nano_flux), component_tensors(folder)
    assert sum(map(len, after.values())) == 1377
    for component, tensors in before.items():
        assert after[component].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert after[component][name].dtype == tensor.dtype
            assert torch.equal(after[component][name], tensor), name


def test_converted_folder_is_loaded_like_the_original(
    nano_flux: Path, files: SingleFilesParams, settings: Path
) -> None:
    """The stages after fetch see no difference: same parameters, same tokens."""
    folder = convert_single_files(files, settings)
    device = torch.device("cpu")
    pairs = [
        (load_transformer(root, MODEL, device), load_vae(root, device))
        for root in (nano_flux, folder)
    ]
    for one, two in zip(*pairs, strict=True):
        assert one.config.keys() == two.config.keys()
        state = two.state_dict()
        assert one.state_dict().keys() == state.keys()
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, state[name]), name
    one, two = (load_text_encoders(root, "float32", device) for root in (nano_flux, folder))
    prompt = ["a small red circle on the left"]
    encoded = [
        pipeline.encode_prompt(prompt, None, max_sequence_length=32)[:2] for pipeline in (one, two)
    ]
    for mine, theirs in zip(*encoded, strict=True):
        assert torch.equal(mine, theirs)


def test_second_conversion_is_the_first_one(files: SingleFilesParams, settings: Path) -> None:
    """Named by content: nothing is written twice, and other weights go elsewhere."""
    folder = convert_single_files(files, settings)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert convert_single_files(files, settings) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    moved = Path(files.autoencoder).with_name("renamed.safetensors")
    Path(files.autoencoder).rename(moved)
    renamed = files.model_copy(update={"autoencoder": str(moved)})
    assert convert_single_files(renamed, settings) == folder
    edit(moved, lambda tensors: tensors["encoder.conv_in.bias"].add_(1))
    assert convert_single_files(renamed, settings) != folder


def test_same_bytes_in_another_place(
    files: SingleFilesParams, settings: Path, tmp_path: Path
) -> None:
    """Neither folder nor order of the files is in what is written."""
    elsewhere = files.model_copy(update={"converted": str(tmp_path / "elsewhere")})
    one, two = (convert_single_files(each, settings) for each in (files, elsewhere))
    assert one.name == two.name
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(names) == 15
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    origin = json.loads((one / "single_files.json").read_text())
    assert origin["vae"]["name"] == "ae.safetensors"


def test_files_in_names_of_diffusers_are_taken_as_they_are(
    nano_flux: Path, files: SingleFilesParams, settings: Path
) -> None:
    """A fine-tuned transformer goes with the autoencoder of another folder."""
    model = nano_flux / "vae" / "diffusion_pytorch_model.safetensors"
    transformer = nano_flux / "transformer" / "diffusion_pytorch_model.safetensors"
    mixed = files.model_copy(update={"autoencoder": str(model), "transformer": str(transformer)})
    folder = convert_single_files(mixed, settings)
    before, after = component_tensors(nano_flux), component_tensors(folder)
    for component in ("vae", "transformer"):
        for name, tensor in before[component].items():
            assert torch.equal(after[component][name], tensor), name


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(files: SingleFilesParams, settings: Path) -> str:
    """Return the message of the refusal; nothing may be left behind."""
    with pytest.raises(WeightsError) as caught:
        convert_single_files(files, settings)
    converted = Path(files.converted)
    assert not converted.exists() or not list(converted.iterdir())
    return str(caught.value)


def test_all_that_does_not_fit_is_said_at_once(files: SingleFilesParams, settings: Path) -> None:
    """Missing, left over, of another shape, and twice but not the same: one message."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for index in range(7):
            del tensors[f"single_blocks.{index}.linear1.weight"]
        tensors["double_blocks.0.img_attn.qkv.lora"] = torch.zeros(1)
        tensors["img_in.weight"] = torch.zeros(64, 16)

    edit(Path(files.transformer), spoil)
    edit(Path(files.text_encoder_2), lambda t: t["encoder.embed_tokens.weight"].add_(1))
    edit(Path(files.text_encoder), lambda t: t.pop("text_model.final_layer_norm.bias"))
    message = refused(files, settings)
    take = "Take the file that belongs to the configs in fetch.folder."
    first = ", ".join(f"single_blocks.{index}.linear1.weight" for index in range(5))
    assert "(5 problems)" in message
    assert f"{files.transformer}: lacks 7 tensors: {first} and 2 more. {take}" in message
    assert (
        f"{files.transformer}: has no place for 1 tensors: double_blocks.0.img_attn.qkv.lora. "
    ) in message
    assert (
        f"{files.transformer}: does not fit the config in 1 tensors: "
        "img_in.weight ([64, 16], expected [64, 32]). "
    ) in message
    assert f"{files.text_encoder}: lacks 1 tensors: final_layer_norm.bias. {take}" in message
    assert (
        f"{files.text_encoder_2}: holds two different embeddings, shared.weight and "
        "encoder.embed_tokens.weight. Take another T5 encoder: FLUX's has one."
    ) in message


def test_files_that_are_no_weights_of_ours_are_refused(
    files: SingleFilesParams, settings: Path
) -> None:
    """8-bit weights, GGUF, a pickle under a wrong name and a torn file, each with its way out."""
    edit(
        Path(files.transformer),
        lambda t: t.update({"img_in.weight": t["img_in.weight"].to(torch.float8_e4m3fn)}),
    )
    Path(files.autoencoder).write_bytes(b"GGUF\3\0\0\0")
    torch.save({"a": torch.zeros(1)}, files.text_encoder)
    torn = Path(files.text_encoder_2)
    torn.write_bytes(torn.read_bytes()[:-1])
    message = refused(files, settings)
    take = "Take the file with 16-bit weights (bf16 or fp16)."
    assert f"{files.transformer}: holds quantised or other weights (F8_E4M3). {take}" in message
    assert f"{files.autoencoder}: is GGUF, which holds quantised weights. {take}" in message
    assert f"{files.text_encoder}: pickled weights, which can run any program" in message
    assert f"{files.text_encoder_2}: is no whole safetensors file (" in message
    assert "(4 problems)" in message


def test_pickles_and_missing_files_are_named(files: SingleFilesParams, settings: Path) -> None:
    """By their names, before anything is opened."""
    checkpoint = Path(files.transformer).with_suffix(".ckpt")
    shutil.copy(files.transformer, checkpoint)
    wrong = files.model_copy(update={"transformer": str(checkpoint), "autoencoder": "no/ae.sft"})
    message = refused(wrong, settings)
    assert f"{checkpoint}: pickled weights" in message
    assert "no/ae.sft: does not exist. Check fetch.single_files." in message


def test_configs_are_needed(files: SingleFilesParams, settings: Path) -> None:
    """The files alone do not say what the model is, nor how words become tokens."""
    (settings / "vae" / "config.json").unlink()
    shutil.rmtree(settings / "tokenizer_2")
    message = refused(files, settings)
    assert f"{settings / 'vae' / 'config.json'}: missing" in message
    assert f"{settings / 'tokenizer_2'}: missing, model_index.json names it" in message
    index = json.loads((settings / "model_index.json").read_text())
    del index["vae"]
    (settings / "model_index.json").write_text(json.dumps(index))
    assert "does not name vae. Take the configs of a FLUX model." in refused(files, settings)


def test_broken_config_is_named(files: SingleFilesParams, settings: Path) -> None:
    """Not a traceback out of diffusers."""
    (settings / "vae" / "config.json").write_text("{")
    assert f"{settings / 'vae' / 'config.json'}: cannot be read (" in refused(files, settings)


def test_room_is_checked_before_the_first_byte(
    files: SingleFilesParams, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of FLUX.1-dev takes 34 GB: better said at once."""
    monkeypatch.setattr(single_files, "SPARE_BYTES", 10**18)
    message = refused(files, settings)
    assert f"{files.converted}: needs 1000000000.0 GB, " in message
    assert "set fetch.single_files.converted to a folder on another disk." in message
