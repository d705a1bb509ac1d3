"""Settings go to other trainers and come back, and what cannot go along is said."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import train
from stages.contracts.errors import ParamsError
from stages.contracts.params import load_params
from stages.exporting.trainer_files import export_config, import_config
from stages.runtime import console

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


def test_kohya_file_says_the_run(tmp_path: Path) -> None:
    """It is TOML; both lists of blocks stand in one network_args, since a second one wins."""
    params = changed(
        tmp_path / "params.yaml",
        train={"blocks": ["double.0-3", "single.7"], "timesteps": "shifted"},
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
