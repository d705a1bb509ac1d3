"""The table of what is in a file, and the commands that show and convert it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stages.adapters.conversion import to_diffusers, to_kohya
from stages.adapters.files import build_adapter, read_adapter
from stages.adapters.inspection import block_rows, inspect
from stages.adapters.norms import delta_norm
from stages.adapters.reading import read_file
from stages.contracts.errors import AdapterError
from tests.adapters.formats.foreign_files import FORMATS, write_foreign

ROOT = Path(__file__).parents[2]
TEXT = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
}


@pytest.fixture
def kohya_file(shapes: dict[str, tuple[int, int]], tmp_path: Path) -> Path:
    """A kohya file without block 0 and with weights for a text encoder."""
    foreign = write_foreign(FORMATS["kohya sd-scripts"], "without block 0", shapes)
    path = tmp_path / "lora.safetensors"
    header = {"ss_output_name": "tok", "ss_network_dim": "2"}
    safetensors.torch.save_file(foreign.tensors | TEXT, path, header)
    return path


def test_the_table_has_what_the_file_has(kohya_file: Path) -> None:
    """Rank, alpha, bytes and norm of each block; blocks that are there and not; what is odd."""
    shown = inspect(kohya_file)
    for expected in (
        f"lora.safetensors: {kohya_file.stat().st_size:,} bytes",
        "names: kohya (",
        "blocks present: double.1, single.1-2, base",
        "blocks absent, if the model is FLUX.1: double.0, double.2-18, single.0, single.3-37",
        "header: ss_output_name = tok",
        "header: ss_network_dim = 2 (not kept when written)",
        "odd: 3 tensors (68 bytes) are for text encoders and are kept apart",
        "odd: alpha is not the rank (scale is not 1) in",
    ):
        assert expected in shown
    rows = block_rows(read_file(kohya_file), read_adapter(kohya_file))
    assert [str(row.block) for row in rows] == ["double.1", "single.1", "single.2", "base"]
    assert [row.layers for row in rows] == [10, 3, 3, 10]
    assert {row.ranks for row in rows} == {(2,)}
    assert rows[0].alphas == (1.0, 3.0)
    stored = safetensors.torch.load_file(kohya_file)
    size = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in stored.items()
        if "double_blocks_1_" in name
    )
    assert rows[0].bytes == size
    adapter = read_adapter(kohya_file)
    squares = [
        delta_norm(pair) ** 2
        for module, pair in adapter.modules.items()
        if module.startswith("transformer_blocks.1.")
    ]
    assert rows[0].norm == pytest.approx(sum(squares) ** 0.5)


def test_kinds_and_zeros_are_told(tmp_path: Path) -> None:
    """LoKr has no rank to show, DoRA no norm without base weights, and zero is not absent."""
    tensors = {
        "lora_unet_double_blocks_0_img_mlp_0.lokr_w1": torch.ones(2, 2),
        "lora_unet_double_blocks_0_img_mlp_0.lokr_w2": torch.ones(3, 2),
        "lora_unet_double_blocks_1_img_mlp_0.lora_down.weight": torch.ones(2, 4),
        "lora_unet_double_blocks_1_img_mlp_0.lora_up.weight": torch.ones(6, 2),
        "lora_unet_double_blocks_1_img_mlp_0.dora_scale": torch.ones(6, 1),
        "transformer.transformer_blocks.40.ff.net.2.lora_A.weight": torch.ones(1, 4).half(),
        "transformer.transformer_blocks.40.ff.net.2.lora_B.weight": torch.zeros(6, 1).half(),
    }
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path)
    read = read_file(path)
    rows = block_rows(read, build_adapter(read))
    assert [row.kinds for row in rows] == [("LoKr",), ("DoRA",), ("LoRA",)]
    assert [row.ranks for row in rows] == [(), (2,), (1,)]
    assert rows[0].norm == pytest.approx(24**0.5)
    assert rows[1].norm is None
    assert rows[2].norm == 0.0
    shown = inspect(path)
    for expected in (
        "has DoRA, LoKr: written back as it came",
        "DoRA's change depends on the base weights",
        "present, but without any effect: double.40",
        "has more blocks than FLUX.1",
        "number formats are mixed: float16, float32",
        "names are spelled in several ways",
        "ranks differ between layers",
    ):
        assert f"odd: {expected}" in shown


def test_a_clean_file_has_nothing_odd(shapes: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    """Remarks are for what a person should know, not decoration."""
    foreign = write_foreign(FORMATS["diffusers, ai-toolkit"], "two blocks", shapes)
    safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors")
    assert "odd:" not in inspect(tmp_path / "a.safetensors")


def test_conversion_writes_text_encoders_beside(kohya_file: Path, tmp_path: Path) -> None:
    """Nothing is lost: the transformer's part in one file, the rest as it came in the other."""
    out = tmp_path / "new" / "out.safetensors"
    told = to_diffusers(kohya_file, out)
    beside = tmp_path / "new" / "out-text-encoders.safetensors"
    assert sorted(path.name for path in out.parent.iterdir()) == [beside.name, out.name]
    assert str(out) in told
    assert f"{beside}: 3 tensors for text encoders" in told
    written = safetensors.torch.load_file(beside)
    assert written.keys() == TEXT.keys()
    assert all(torch.equal(written[name], TEXT[name]) for name in TEXT)
    assert not read_adapter(out).apart


def test_alpha_beside_a_file_of_pefts(
    shapes: dict[str, tuple[int, int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """adapter_config.json counts in the commands; a stage refuses it, and says if there is none."""
    foreign = write_foreign(FORMATS["PEFT"], "two blocks", shapes)
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    safetensors.torch.save_file(foreign.tensors, path)
    assert {pair.scale for pair in read_adapter(path).modules.values()} == {1.0}
    assert "alpha is taken to be the rank" in caplog.text
    assert "odd: the names are PEFT's" in inspect(path)
    config.write_text(json.dumps({"r": 2, "lora_alpha": 2}), encoding="utf-8")
    assert {pair.scale for pair in read_adapter(path).modules.values()} == {1.0}
    config.write_text(json.dumps({"r": 2, "lora_alpha": 6}), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"adapter_config\.json beside it.*to-diffusers"):
        read_adapter(path)
    to_diffusers(path, tmp_path / "out.safetensors")
    written = read_adapter(tmp_path / "out.safetensors")
    for module, delta in foreign.deltas.items():
        torch.testing.assert_close(written.modules[module].delta(), 3.0 * delta)
    config.write_text("{", encoding="utf-8")
    with pytest.raises(AdapterError, match="not a LoraConfig in JSON"):
        read_adapter(path)


def test_conversion_replaces_nothing(kohya_file: Path, tmp_path: Path) -> None:
    """Neither the file nor the one beside it; both are named."""
    out = tmp_path / "out.safetensors"
    to_kohya(kohya_file, out)
    before = out.read_bytes()
    with pytest.raises(AdapterError, match=r"out\.safetensors: exists already") as caught:
        to_diffusers(kohya_file, out)
    assert "out-text-encoders.safetensors: exists already" in str(caught.value)
    assert out.read_bytes() == before


def test_readers_are_told_of_what_is_kept_apart(
    kohya_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning in the log of every stage that reads the file, and the tensors are there."""
    adapter = read_adapter(kohya_file)
    assert adapter.apart.keys() == TEXT.keys()
    assert "3 tensors for text encoders are kept apart" in caplog.text


def test_the_commands_of_the_stage(kohya_file: Path, tmp_path: Path) -> None:
    """`python -m stages.split inspect FILE` and its siblings; errors are one message and exit 1."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stages.split", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    shown = run("inspect", str(kohya_file))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == inspect(kohya_file) + "\n"
    out = tmp_path / "out.safetensors"
    assert run("to-kohya", str(kohya_file), str(out)).returncode == 0
    assert read_adapter(out).modules.keys() == read_adapter(kohya_file).modules.keys()
    refused = run("to-kohya", str(kohya_file), str(out))
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""
