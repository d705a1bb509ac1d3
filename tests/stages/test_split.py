"""The split stage, on the embedded model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from stages.adapters.base_weights import open_linear_weights
from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.kohya_file import write_kohya
from stages.adapters.module import Adapter, LoraPair
from stages.adapters.partition import join
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, WeightsError
from stages.contracts.tables import SPLIT_INDEX, read_table
from stages.families.architecture import block_of
from stages.families.noise import keyed_normal
from stages.split import split

ROOT = Path(__file__).parents[2]
RANK = 2

CASES: Mapping[str, Callable[[BlockId], bool]] = {
    "full": lambda _: True,
    "without block 0": lambda block: block.index != 0 or block.stack == "base",
    "two blocks": lambda block: str(block) in {"double.7", "single.17"},
    "base only": lambda block: block.stack == "base",
}
PRESENT = {"full": 58, "without block 0": 56, "two blocks": 2, "base only": 1}
ABSENT = {"full": 0, "without block 0": 2, "two blocks": 55, "base only": 57}


def plant(folder: Path, chosen: Callable[[BlockId], bool]) -> Adapter:
    """Return an adapter on the chosen blocks of the model in `folder`."""
    with open_linear_weights(folder) as linears:
        shapes = linears.shapes
    pairs = {
        module: LoraPair(
            keyed_normal((RANK, columns), "down", module),
            keyed_normal((rows, RANK), "up", module),
            float(RANK),
        )
        for module, (rows, columns) in sorted(shapes.items())
        if chosen(block_of(module))
    }
    return Adapter(pairs, {"trained_by": "a test"})


@dataclass(frozen=True)
class Case:
    """An adapter that was split: its case, itself, and the stage's output folder."""

    name: str
    source: Adapter
    out: Path


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest,
    nano_flux: Path,
    weights_manifest: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    """One of the four cases, split once for all tests."""
    folder = tmp_path_factory.mktemp("split")
    source = plant(nano_flux, CASES[request.param])
    write_adapter(folder / "a.safetensors", source)
    split(weights=weights_manifest, adapter=folder / "a.safetensors", out=folder / "out")
    return Case(request.param, source, folder / "out")


def test_the_parts_are_the_source(case: Case) -> None:
    """One file per block present; joined they are the adapter, bit for bit, metadata included."""
    source = case.source
    files = sorted((case.out / "blocks").iterdir())
    assert [file.stem for file in files] == sorted(str(block) for block in source.blocks)
    parts = [read_adapter(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        assert part.blocks == (BlockId.parse(file.stem),)
    union = join(parts)
    assert union.metadata == source.metadata
    assert union.modules.keys() == source.modules.keys()
    for module, pair in source.modules.items():
        assert torch.equal(union.modules[module].down, pair.down)
        assert torch.equal(union.modules[module].up, pair.up)
        assert union.modules[module].alpha == pair.alpha


def test_the_index_has_a_row_per_block_present(case: Case, nano_flux: Path) -> None:
    """None for absent blocks; counts and norms are those of the adapter's own modules."""
    source = case.source
    index = read_table(SPLIT_INDEX, case.out / "index.csv").set_index("block")
    assert set(index.index) == {str(block) for block in source.blocks}
    with open_linear_weights(nano_flux) as linears:
        for block, row in index.iterrows():
            names = [name for name in source.modules if str(block_of(name)) == block]
            deltas = sum(source.modules[name].delta().double().square().sum() for name in names)
            weights = sum(linears.read(name).double().square().sum() for name in names)
            assert row["modules"] == len(names)
            assert row["rank"] == RANK
            assert row["parameters"] == sum(source.modules[name].parameters for name in names)
            file = case.out / "blocks" / f"{block}.safetensors"
            assert row["bytes"] == file.stat().st_size
            assert row["norm"] == pytest.approx(math.sqrt(deltas), rel=1e-5)
            assert row["relative_norm"] == pytest.approx(math.sqrt(deltas / weights), rel=1e-5)


def test_the_metrics_tell_absent_from_present(case: Case) -> None:
    """Flat numbers: what is there, what is not, and what is there without effect."""
    assert json.loads((case.out / "metrics.json").read_text()) == {
        "blocks_absent": ABSENT[case.name],
        "blocks_present": PRESENT[case.name],
        "blocks_zero": 0,
        "double_blocks": 19,
        "single_blocks": 38,
        "modules": len(case.source.modules),
        "parameters": case.source.parameters,
        "tensors_apart": 0,
    }
    assert (case.out / "apart" / "index.csv").read_text() == "tensor\n"


def test_a_block_without_effect_is_not_an_absent_block(
    nano_flux: Path, weights_manifest: Path, tmp_path: Path
) -> None:
    """B zero is present with norm 0: a file, a row, and a count of its own."""
    source = plant(nano_flux, CASES["two blocks"])
    zero = {
        name: LoraPair(pair.down, torch.zeros_like(pair.up), pair.alpha)
        for name, pair in source.modules.items()
        if block_of(name) == BlockId("double", 7)
    }
    write_adapter(tmp_path / "a.safetensors", Adapter({**source.modules, **zero}, {}))
    split(weights=weights_manifest, adapter=tmp_path / "a.safetensors", out=tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["blocks_present"], metrics["blocks_zero"]) == (2, 1)
    index = read_table(SPLIT_INDEX, tmp_path / "out" / "index.csv").set_index("block")
    assert index.loc["double.7", "norm"] == index.loc["double.7", "relative_norm"] == 0.0
    assert index.loc["single.17", "norm"] > 0.0


def test_any_format_is_taken_apart_alike(
    case: Case, weights_manifest: Path, tmp_path: Path
) -> None:
    """Kohya's fused file gives the same files per block, byte for byte, headers apart."""
    write_kohya(tmp_path / "k.safetensors", case.source)
    split(weights=weights_manifest, adapter=tmp_path / "k.safetensors", out=tmp_path / "out")
    for file in sorted((case.out / "blocks").iterdir()):
        ours, theirs = (
            load_file(out / "blocks" / file.name) for out in (case.out, tmp_path / "out")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, two = (
        read_table(SPLIT_INDEX, out / "index.csv").drop(columns="bytes")
        for out in (case.out, tmp_path / "out")
    )
    assert one.equals(two)


def test_weights_for_text_encoders_get_a_file_of_their_own(
    nano_flux: Path, weights_manifest: Path, tmp_path: Path
) -> None:
    """They are in no block's file and no norm, and they are not lost."""
    source = plant(nano_flux, CASES["two blocks"])
    text = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4).half(),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2).half(),
    }
    write_kohya(tmp_path / "plain.safetensors", source)
    save_file(load_file(tmp_path / "plain.safetensors") | text, tmp_path / "a.safetensors")
    for name in ("plain", "a"):
        adapter, out = tmp_path / f"{name}.safetensors", tmp_path / name
        split(weights=weights_manifest, adapter=adapter, out=out)
    kept = load_file(tmp_path / "a" / "apart" / "text-encoders.safetensors")
    assert kept.keys() == text.keys()
    assert all(kept[name].dtype == torch.float16 for name in text)
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["tensors_apart"] == 2
    one, two = (read_table(SPLIT_INDEX, tmp_path / name / "index.csv") for name in ("plain", "a"))
    assert one.drop(columns="bytes").equals(two.drop(columns="bytes"))


def test_a_dora_is_measured_with_the_base_weights(
    nano_flux: Path, weights_manifest: Path, tmp_path: Path
) -> None:
    """Its norm is that of W' - W, and its block's file is what came."""
    module = "transformer_blocks.7.attn.to_q"
    with open_linear_weights(nano_flux) as linears:
        weight = linears.read(module).float()
    down, up = keyed_normal((2, 64), "a"), keyed_normal((64, 2), "b")
    magnitude = 1.0 + 0.1 * keyed_normal((64,), "m")
    tensors = {
        f"transformer.{module}.lora_A.weight": down,
        f"transformer.{module}.lora_B.weight": up,
        f"transformer.{module}.lora_magnitude_vector": magnitude,
    }
    save_file(tensors, tmp_path / "a.safetensors")
    split(weights=weights_manifest, adapter=tmp_path / "a.safetensors", out=tmp_path / "out")
    changed = weight + up @ down
    changed = magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
    index = read_table(SPLIT_INDEX, tmp_path / "out" / "index.csv").set_index("block")
    assert index.loc["double.7", "norm"] == pytest.approx(
        (changed - weight).norm().item(), rel=1e-4
    )
    written = load_file(tmp_path / "out" / "blocks" / "double.7.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


def test_equal_input_gives_equal_bytes(
    nano_flux: Path, weights_manifest: Path, tmp_path: Path
) -> None:
    """Run twice, into the same folder and another, every file is the same."""
    write_adapter(tmp_path / "a.safetensors", plant(nano_flux, CASES["two blocks"]))
    for name in ("one", "two", "one"):
        split(weights=weights_manifest, adapter=tmp_path / "a.safetensors", out=tmp_path / name)
    one, two = (
        {
            file.relative_to(tmp_path / name).as_posix(): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 5


def test_another_models_adapter_is_refused_and_old_output_stays(
    nano_flux: Path, weights_manifest: Path, tmp_path: Path
) -> None:
    """Wrong shapes, unknown blocks and a truncated file leave what the last run wrote."""
    good, path = plant(nano_flux, CASES["two blocks"]), tmp_path / "a.safetensors"
    out = tmp_path / "out"
    write_adapter(path, good)
    split(weights=weights_manifest, adapter=path, out=out)
    before = (out / "index.csv").read_bytes()
    wide = LoraPair(torch.ones(2, 3072), torch.ones(3072, 2), 2.0)
    names = ("transformer_blocks.7.attn.to_q", "transformer_blocks.19.attn.to_q")
    write_adapter(path, Adapter(dict.fromkeys(names, wide), {}))
    with pytest.raises(AdapterError) as caught:
        split(weights=weights_manifest, adapter=path, out=out)
    assert "not in the base model: transformer_blocks.19.attn.to_q" in str(caught.value)
    assert "differ: transformer_blocks.7.attn.to_q (adapter (3072, 3072)" in str(caught.value)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AdapterError, match="truncated"):
        split(weights=weights_manifest, adapter=path, out=out)
    write_adapter(path, good)
    with pytest.raises(WeightsError, match="manifest"):
        split(weights=tmp_path / "manifest.json", adapter=path, out=out)
    assert (out / "index.csv").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.safetensors", "out"]


def test_the_command_line_ends_with_one_message(weights_manifest: Path, tmp_path: Path) -> None:
    """`python -m stages.split` on a missing adapter: exit code 1, the file and the remedy."""
    arguments = {"weights": weights_manifest, "adapter": tmp_path / "no.safetensors"}
    command = [sys.executable, "-m", "stages.split", "--out", str(tmp_path / "out")]
    command += [f"--{name}={path}" for name, path in arguments.items()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"{tmp_path}/no.safetensors: does not exist. Check the path" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_stage_reads_the_adapter_that_params_name() -> None:
    """params.yaml has the path that dvc.yaml hands to --adapter."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert params["split"] == {"adapter": "data/train/adapter.safetensors"}
