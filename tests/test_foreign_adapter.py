"""`dvc repro report` on a LoRA that was not trained here, in a clone that never trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.adapters.base_weights import open_linear_weights
from stages.adapters.files import read_adapter
from stages.adapters.kohya_file import write_kohya
from stages.adapters.module import Adapter
from stages.adapters.pair import LoraPair
from stages.families.architecture import block_of
from stages.families.noise import keyed_normal
from tests.small_run import ROOT, clone, read_params, run, stages_run, write_params

pytestmark = pytest.mark.slow

BLOCKS = {"double.3", "single.7", "single.20"}
TEXT = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2),
}


def write_foreign(path: Path) -> None:
    """Write a kohya file for three blocks of the embedded model, and for a text encoder."""
    with open_linear_weights(ROOT / "data/nano-flux") as linears:
        pairs = {
            module: LoraPair(
                0.1 * keyed_normal((2, columns), "down", module),
                0.1 * keyed_normal((rows, 2), "up", module),
                2.0,
            )
            for module, (rows, columns) in linears.shapes.items()
            if str(block_of(module)) in BLOCKS
        }
    path.parent.mkdir(parents=True)
    write_kohya(path, Adapter(pairs, {"ss_output_name": "stranger"}))
    save_file(load_file(path) | TEXT, path, {"ss_output_name": "stranger"})


def test_the_report_of_a_foreign_lora_needs_no_pictures_and_no_training(tmp_path: Path) -> None:
    """prepare, caption, encode and train do not run; the page is there, the slim file loads."""
    folder = clone(tmp_path / "clone")
    write_foreign(folder / "loras" / "stranger.safetensors")
    params = read_params(folder)
    params["split"]["adapter"] = "loras/stranger.safetensors"
    write_params(folder, params)
    refused = run(folder, "dvc", "repro", "report")
    assert refused.returncode != 0
    assert "set report.origin: data/elsewhere" in refused.stdout + refused.stderr
    params["report"]["origin"] = "data/elsewhere"
    write_params(folder, params)
    done = run(folder, "dvc", "repro", "report")
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {"fetch", "split", "render", "attribute", "evaluate", "slim", "report"}
    assert set(stages_run(refused.stdout)) | set(stages_run(done.stdout)) == ran
    assert not (folder / "data/train/adapter.safetensors").exists()
    assert not (folder / "data/prepare/images").exists()
    page = (folder / "data/report/index.html").read_text(encoding="utf-8")
    assert "stranger" in page
    assert 'id="training"' not in page
    assert 'id="dataset"' not in page
    assert load_file(folder / "data/split/apart/text-encoders.safetensors").keys() == TEXT.keys()
    slim = read_adapter(folder / "data/slim/adapter-slim.safetensors")
    assert {str(block) for block in slim.blocks} <= BLOCKS
    again = run(folder, "dvc", "repro", "report")
    assert stages_run(again.stdout) == []
    assert run(folder, "flows.targets").stdout == "report\n"
