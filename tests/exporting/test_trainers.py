"""Settings go to other trainers and come back, and what cannot go along is said."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import train
from stages.contracts.errors import ParamsError, WeightsError
from stages.contracts.params import load_params
from stages.exporting.trainer_files import export_config, import_config
from stages.families.weights import Manifest, write_manifest
from stages.runtime import console
from tests.exporting.base_models import single_files, write_configs
from tests.presets import PRESETS, load_preset

ROOT = Path(__file__).parents[2]
FLUX = ROOT / "presets" / "flux1-dev-24gb.yaml"


def changed(path: Path, **sections: dict[str, Any]) -> Path:
    """Write the FLUX preset with some values changed, and return its path."""
    content = yaml.safe_load(FLUX.read_text(encoding="utf-8"))
    for section, values in sections.items():
        content[section] |= values
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def test_ai_toolkit_there_and_back_gives_the_same_params(tmp_path: Path) -> None:
    """All that both programs can say survives; the params it comes back to have other values."""
    sent = changed(
        tmp_path / "sent.yaml",
        train={
            "rank": 32,
            "alpha": 32.0,
            "blocks": ["double.0-3", "double.7", "single.1", "single.20-37"],
            "steps": 1500,
            "batch": 2,
            "accumulation": 3,
            "optimiser": "adamw8bit",
            "learning_rate": 4e-5,
            "weight_decay": 0.02,
            "gradient_clip": 0.5,
            "ema_decay": 0.99,
            "timesteps": "uniform",
            "caption_dropout": 0.1,
            "seed": 7,
            "validation_every": 100,
            "checkpoint_every": 100,
            "sample_every": 200,
            "sample_seed": 3,
        },
        encode={"sizes_px": [512, 768, 1024], "sample_prompts": ["mytrigger in a boat"]},
        sampling={"size_px": 1024, "steps": 28, "guidance": 4.0},
    )
    said = export_config(tmp_path / "there.yaml", params=sent, to="ai-toolkit")
    assert "validation on held-out pictures" in said
    import_config(tmp_path / "there.yaml", tmp_path / "back.yaml", params=FLUX)
    assert load_params(tmp_path / "back.yaml") == load_params(sent)
    assert load_params(sent) != load_params(FLUX)


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_goes_to_both_trainers_and_back(path: Path, tmp_path: Path) -> None:
    """What the files say of guidance and bits is the preset's; what comes back is, too."""
    params = load_preset(path, tmp_path)
    path = tmp_path / path.name
    export_config(tmp_path / "there.yaml", params=path, to="ai-toolkit")
    document = yaml.safe_load((tmp_path / "there.yaml").read_text(encoding="utf-8"))
    process = document["config"]["process"][0]
    quantised = params.model.quantisation != "none"
    assert process["model"]["quantize"] is quantised
    assert process["model"].get("qtype") == ("qfloat8" if quantised else None)
    bypassed = {"flex1-alpha-24gb": True, "flux1-schnell-24gb": None}.get(path.stem, False)
    assert process["train"].get("bypass_guidance_embedding") is bypassed
    import_config(tmp_path / "there.yaml", tmp_path / "back.yaml", params=path)
    back = load_params(tmp_path / "back.yaml")
    bits = "fp8" if quantised else "none"
    assert back.model == params.model.model_copy(update={"quantisation": bits})
    assert (back.train.guidance, back.train.steps) == (params.train.guidance, params.train.steps)
    export_config(tmp_path / "there.toml", params=path, to="kohya")
    found = tomllib.loads((tmp_path / "there.toml").read_text(encoding="utf-8"))
    assert found["fp8_base"] is quantised
    assert found["network_dim"] == params.train.rank
    assert ("guidance_scale" in found) is (path.stem != "flux1-schnell-24gb")


def test_bits_and_guidance_that_the_other_has_not_are_told(tmp_path: Path) -> None:
    """int8 stays int8 both ways; 4 bits and another guidance than 1 do not go along in silence."""
    own = changed(tmp_path / "int8.yaml", model={"quantisation": "int8"}, train={"guidance": None})
    export_config(tmp_path / "there.yaml", params=own, to="ai-toolkit")
    import_config(tmp_path / "there.yaml", tmp_path / "back.yaml", params=FLUX)
    back = load_params(tmp_path / "back.yaml")
    assert (back.model.quantisation, back.train.guidance) == ("int8", None)
    other = changed(tmp_path / "nf4.yaml", model={"quantisation": "nf4"}, train={"guidance": 3.5})
    said = export_config(tmp_path / "other.yaml", params=other, to="ai-toolkit")
    assert "model.quantisation: nf4 (qfloat8 is written" in said
    assert "train.guidance: 3.5 (ai-toolkit trains at 1)" in said


def exported(tmp_path: Path, fetch: dict[str, Any], to: str) -> tuple[Any, str]:
    """Return the other trainer's settings for a base without a repository, and what is said."""
    own = {"repository": None, "revision": None, "single_files": None, **fetch}
    params = changed(tmp_path / "params.yaml", fetch=own, train={"guidance": None})
    out = tmp_path / f"{to}.txt"
    out.unlink(missing_ok=True)
    said = export_config(out, params=params, to=to)
    text = out.read_text(encoding="utf-8")
    return (tomllib.loads(text) if to == "kohya" else yaml.safe_load(text)), said


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("single", [True, False])
def test_a_base_without_guidance_gets_none(guided: bool, single: bool, tmp_path: Path) -> None:
    """Schnell from a folder or as single files is no dev: its configs say so, not a repository."""
    folder = write_configs(tmp_path / "base", guided=guided, shifted=guided)
    files = single_files(tmp_path / "converted") if single else None
    fetch = {"folder": str(folder), "single_files": files}
    found, said = exported(tmp_path, fetch, "kohya")
    assert ("guidance_scale" in found) is guided
    assert ("train.guidance" in said) is guided
    name = Path(found["pretrained_model_name_or_path"]).name
    assert name == f"flux1-{'dev' if guided and not single else 'schnell'}.safetensors"
    found, _ = exported(tmp_path, fetch, "ai-toolkit")
    process = found["config"]["process"][0]
    assert ("bypass_guidance_embedding" in process["train"]) is guided


def write_converted(project: Path, fetch: dict[str, Any]) -> Path:
    """Write what stage fetch leaves of single files: the manifest, and the copy's own record."""
    files = fetch["single_files"]
    folder = Path(files["converted"]) / "0123456789abcdef"
    folder.mkdir(parents=True)
    roles = ("transformer", "autoencoder", "text_encoder", "text_encoder_2")
    record = {role: {"name": Path(files[role]).name, "sha256": "0" * 64} for role in roles}
    (folder / "single_files.json").write_text(json.dumps(record), encoding="utf-8")
    (project / "data/fetch").mkdir(parents=True)
    manifest = Manifest(folder.as_posix(), None, None, ())
    write_manifest(project / "data/fetch/manifest.json", manifest)
    return folder


def test_ai_toolkit_gets_the_folder_that_single_files_became(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fetch.folder` has no weights then; the copy of other files than these is not taken."""
    monkeypatch.chdir(tmp_path)
    configs = write_configs(tmp_path / "configs", guided=True, shifted=True)
    fetch = {"folder": str(configs), "single_files": single_files(Path("converted"))}

    def told() -> tuple[str, str]:
        found, said = exported(tmp_path, fetch, "ai-toolkit")
        return found["config"]["process"][0]["model"]["name_or_path"], said

    missing = f"the base model's weights: {configs} has its configs and tokenizers alone"
    name, said = told()
    assert (name, missing in said) == (str(configs), True)
    converted = write_converted(tmp_path, fetch)
    name, said = told()
    assert (name, missing in said) == (converted.as_posix(), False)
    for key, other in (("transformer", "/models/other.safetensors"), ("converted", "other")):
        own = fetch["single_files"]
        fetch["single_files"] = {**own, key: other}
        name, said = told()
        assert (name, missing in said) == (str(configs), True)
        fetch["single_files"] = own
    (converted / "single_files.json").write_text("[]", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"single_files\.json: cannot be read"):
        told()


def test_what_ai_toolkit_cannot_say_is_told(tmp_path: Path) -> None:
    """Neither an optimiser of ours nor alpha, warm-up and phases go along in silence."""
    phase = {"rank": 16, "alpha": 16.0, "steps": 10, "learning_rate": 1e-5}
    own = {"optimiser": "schedule-free-adamw", "alpha": 8.0, "warmup_steps": 5, "phases": [phase]}
    params = changed(tmp_path / "params.yaml", train=own)
    said = export_config(tmp_path / "out.yaml", params=params, to="ai-toolkit")
    for name in own:
        assert f"train.{name}" in said


def test_a_file_from_elsewhere_says_what_it_loses(tmp_path: Path) -> None:
    """Unknown settings are named, 1e-4 is a number, and the trigger reaches every prompt."""
    process = {
        "type": "sd_trainer",
        "trigger_word": "p3r5on",
        "network": {"type": "lora", "linear": 8, "linear_alpha": 1},
        "train": {"steps": 900, "lr": "1e-4", "optimizer": "automagic", "noise_offset": 0.1},
        "datasets": [{"folder_path": "/data/p", "resolution": [512], "shuffle_tokens": True}],
        "sample": {"prompts": ["[trigger] in a park"]},
        "slider": {"x": 1},
    }
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump({"config": {"process": [process]}}), encoding="utf-8")
    said = import_config(file, tmp_path / "out.yaml", params=FLUX)
    params = load_params(tmp_path / "out.yaml")
    assert (params.train.rank, params.train.alpha, params.train.steps) == (8, 8.0, 900)
    assert params.train.learning_rate == 1e-4
    assert params.encode.sample_prompts == ["p3r5on in a park"]
    assert all("p3r5on" in prompt for prompt in params.prompts.develop)
    for name in (
        "automagic",
        "noise_offset",
        "shuffle_tokens",
        "slider",
        "linear_alpha",
        "/data/p",
    ):
        assert name in said


EXAMPLE = """
job: extension
config:
  name: my_lora
  process:
    - type: sd_trainer
      training_folder: output
      device: cuda:0
      network: {type: lora, linear: 16, linear_alpha: 16}
      save: {dtype: float16, save_every: 240, max_step_saves_to_keep: 4, push_to_hub: false}
      datasets:
        - {folder_path: /data/p, caption_ext: txt, caption_dropout_rate: 0.05, resolution: [512]}
      train:
        batch_size: 1
        steps: 2000
        gradient_accumulation_steps: 4
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: flowmatch
        optimizer: adamw8bit
        lr: 1e-4
        ema_config: {use_ema: true, ema_decay: 0.99}
        dtype: bf16
      model: {name_or_path: black-forest-labs/FLUX.1-dev, is_flux: true, quantize: true}
      sample:
        sampler: flowmatch
        sample_every: 240
        width: 1024
        height: 1024
        prompts: ["a robot"]
        neg: ""
        seed: 42
        walk_seed: true
        guidance_scale: 4
        sample_steps: 20
meta: {name: "[name]", version: "1.0"}
"""
"""The keys of ai-toolkit's own FLUX example (config/examples)."""


def imported(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """Import the example with texts of it exchanged into out.yaml, and return what is said."""
    text = EXAMPLE
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "theirs.yaml").write_text(text, encoding="utf-8")
    return import_config(tmp_path / "theirs.yaml", tmp_path / "out.yaml", params=FLUX)


def test_the_usual_file_is_taken_whole(tmp_path: Path) -> None:
    """Only what has no place here is told; four batches are one step, so steps are a quarter."""
    said = imported(tmp_path)
    params = load_params(tmp_path / "out.yaml")
    assert (params.train.accumulation, params.train.steps) == (4, 500)
    assert (params.train.checkpoint_every, params.train.sample_every) == (60, 60)
    assert (params.model.quantisation, params.train.ema_decay) == ("fp8", 0.99)
    told = {line.strip("- ").partition(":")[0] for line in said.splitlines()[2:]}
    assert told == {
        "datasets[0].folder_path",
        "model.name_or_path",
        "sample.walk_seed",
        "save.dtype",
        "save.max_step_saves_to_keep",
        "save.push_to_hub",
        "train.gradient_accumulation_steps",
        "trigger_word",
    }


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("noise_scheduler: flowmatch", "noise_scheduler: ddpm", "train.noise_scheduler: 'ddpm'"),
        ("sampler: flowmatch", "sampler: ddim", "sample.sampler: 'ddim'"),
        ("train_unet: true", "train_unet: false", "train.train_unet: False"),
        ('neg: ""', "neg: blurry", "sample.neg: 'blurry'"),
        ("quantize: true", "quantize: true, quantize_te: true", "model.quantize_te: True"),
        ("quantize: true", "quantize: true, qtype: qint4", "model.qtype: qint4"),
        ("is_flux: true, ", "", "model.arch: none in the file"),
        ("_steps: 4", "_steps: -1", "train.gradient_accumulation_steps: -1"),
    ],
)
def test_what_has_another_value_than_ours_is_told(
    before: str, after: str, words: str, tmp_path: Path
) -> None:
    """A key that is known is not a value that is taken."""
    assert words not in imported(tmp_path)
    (tmp_path / "out.yaml").unlink()
    assert words in imported(tmp_path, (before, after))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("is_xl: true", "model.is_xl: true"),
        ("arch: qwen_image", "model.arch: qwen_image"),
        ("is_flux: false", "model.is_flux: false"),
    ],
)
def test_another_models_file_is_refused(flag: str, words: str, tmp_path: Path) -> None:
    """Rates and steps for SDXL are no recipe for FLUX.1."""
    with pytest.raises(ParamsError, match=f"another base model than FLUX.1 \\({words}\\)"):
        imported(tmp_path, ("is_flux: true", flag))
    assert not (tmp_path / "out.yaml").exists()


def test_other_words_for_the_same_are_taken(tmp_path: Path) -> None:
    """Torchao's names of 8 bits, and an architecture with a tag, as ai-toolkit reads them."""
    flags = ("is_flux: true, quantize: true", "arch: 'flux:tag', quantize: true, qtype: int8")
    said = imported(tmp_path, flags)
    assert not any(f"model.{key}" in said for key in ("arch", "qtype", "quantize"))
    assert load_params(tmp_path / "out.yaml").model.quantisation == "int8"


def test_kohya_file_says_the_run(tmp_path: Path) -> None:
    """It is TOML; both lists of blocks stand in one network_args, since a second one wins."""
    params = changed(
        tmp_path / "params.yaml",
        train={
            "blocks": ["double.0-3", "single.7"],
            "timesteps": "shifted",
            "masked_loss": True,
        },
        encode={"sizes_px": [512, 1024]},
    )
    said = export_config(tmp_path / "out.toml", params=params, to="kohya")
    found = tomllib.loads((tmp_path / "out.toml").read_text(encoding="utf-8"))
    assert found["network_args"] == [
        "train_double_block_indices=0-3",
        "train_single_block_indices=7",
    ]
    assert found["train_data_dir"] == "data/caption/dataset/training"
    assert (found["network_dim"], found["network_alpha"]) == (16, 16.0)
    assert (found["max_train_steps"], found["learning_rate"]) == (2000, 1e-4)
    assert found["timestep_sampling"] == "flux_shift"
    assert found["model_prediction_type"] == "raw"
    assert found["cache_text_encoder_outputs"] is False
    assert found["resolution"] == "512,512"
    assert "encode.sizes_px" in said
    # sd-scripts masks by alpha channels alone, which the pictures for trainers have not
    assert "masked_loss" not in found
    assert "train.masked_loss: True" in said


def test_nothing_is_overwritten_and_no_broken_params_are_left(tmp_path: Path) -> None:
    """A file that exists, one that is not ai-toolkit's, and values that params refuse."""
    there = tmp_path / "there.yaml"
    there.write_text("config: {process: [{train: {batch_size: 0}}]}", encoding="utf-8")
    with pytest.raises(ParamsError, match="exists already"):
        export_config(there, params=FLUX, to="kohya")
    with pytest.raises(ParamsError, match="exists already"):
        import_config(FLUX, there, params=FLUX)
    with pytest.raises(ParamsError, match=r"config\.process"):
        import_config(FLUX, tmp_path / "new.yaml", params=FLUX)
    with pytest.raises(ParamsError, match=r"train\.batch"):
        import_config(there, tmp_path / "new.yaml", params=FLUX)
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command stands beside the stage; a refusal is exit code 1, and --to must be given."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(console, "prepare_process", lambda: None)  # this process stays pytest's
    out = tmp_path / "out.yaml"
    monkeypatch.setattr(sys, "argv", ["train", "export-config", "--to", "ai-toolkit", str(out)])
    train.main()
    assert "not taken along:" in capsys.readouterr().out
    assert yaml.safe_load(out.read_text(encoding="utf-8"))["job"] == "extension"
    with pytest.raises(SystemExit) as refused:
        train.main()
    assert refused.value.code == 1
    monkeypatch.setattr(sys, "argv", ["train", "export-config", str(tmp_path / "new.yaml")])
    with pytest.raises(SystemExit) as unasked:
        train.main()
    assert unasked.value.code == 2
