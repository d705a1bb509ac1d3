"""The stage on the shapes of FLUX.1-dev, FLUX.1-schnell and Flex.1-alpha, in miniature."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors import safe_open

from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.module import Adapter, LoraPair
from stages.contracts.errors import ParamsError
from stages.contracts.tables import SPLIT_INDEX, read_table
from stages.families.architecture import Architecture, block_of, lora_modules
from stages.families.noise import keyed_normal
from stages.families.weights import Manifest, WeightFile, write_manifest
from stages.runtime.files import sha256_file
from stages.split import split
from tests.stages.test_train import encoded, own_state, run  # noqa: F401

FAMILIES: dict[str, dict[str, Any]] = {
    "FLUX.1-dev": {"num_layers": 19, "guidance_embeds": True},
    "FLUX.1-schnell": {"num_layers": 19, "guidance_embeds": False},
    "Flex.1-alpha": {"num_layers": 8, "guidance_embeds": True},
}
SHORT = {"steps": 2, "warmup_steps": 0, "validation_every": 2, "checkpoint_every": 2}
SHORT |= {"sample_every": 2, "select": "last", "validation_sigmas": [0.5]}
Base = Callable[[str], Path]


@pytest.fixture
def base(nano_flux: Path, tmp_path: Path) -> Base:
    """A maker of manifests: a family's own blocks and scheduler, one head of 16 numbers wide."""

    def make(family: str) -> Path:
        folder = tmp_path / family
        torch.manual_seed(0)
        FluxTransformer2DModel(
            **FAMILIES[family],
            num_single_layers=38,
            num_attention_heads=1,
            attention_head_dim=16,
            in_channels=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            axes_dims_rope=(4, 6, 6),
        ).save_pretrained(folder / "transformer")
        (folder / "vae").symlink_to(nano_flux / "vae")
        distilled = family == "FLUX.1-schnell"
        FlowMatchEulerDiscreteScheduler(
            shift=1.0 if distilled else 3.0, use_dynamic_shifting=not distilled
        ).save_pretrained(folder / "scheduler")
        files = tuple(
            WeightFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
            for part in ("scheduler", "transformer", "vae")
            for path in sorted((folder / part).iterdir())
        )
        manifest = tmp_path / f"{family}.json"
        write_manifest(manifest, Manifest(str(folder), None, None, files))
        return manifest

    return make


@pytest.mark.parametrize(
    ("family", "guidance", "count"),
    [("FLUX.1-dev", 1.0, 494), ("FLUX.1-schnell", None, 494), ("Flex.1-alpha", None, 340)],
)
def test_each_family_trains(
    base: Base,
    encoded: Path,  # noqa: F811
    tmp_path: Path,
    family: str,
    guidance: float | None,
    count: int,
) -> None:
    """All layers of its own blocks learn; the file loads into a model of that shape."""
    manifest = base(family)
    files = run(manifest, encoded, tmp_path / "out", **SHORT, guidance=guidance)
    assert json.loads(files["metrics.json"])["selected_step"] == 2
    adapter = read_adapter(tmp_path / "out" / "adapter.safetensors")
    assert len(adapter.modules) == count
    assert all(torch.count_nonzero(pair.up) > 0 for pair in adapter.modules.values())
    model = FluxTransformer2DModel.from_pretrained(tmp_path / family / "transformer")
    model.load_lora_adapter(str(tmp_path / "out" / "adapter.safetensors"))
    assert len(lora_modules(Architecture.from_config(model.config), "all")) == count


@pytest.mark.slow
def test_flex_is_trained_without_its_guidance(
    base: Base,
    encoded: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Bypassed or not is two different losses; the file says which it was."""
    manifest = base("Flex.1-alpha")
    run(manifest, encoded, tmp_path / "out", **SHORT, guidance=None)
    run(manifest, encoded, tmp_path / "other", **SHORT, guidance=1.0)
    one, other = (
        json.loads((tmp_path / name / "metrics.json").read_text())["validation_loss_base"]
        for name in ("out", "other")
    )
    assert one != other
    fields = read_adapter(tmp_path / "out" / "adapter.safetensors").metadata
    assert json.loads(fields["blocklens.train"])["guidance"] is None


def test_blocks_of_flux_are_refused_on_flex(
    base: Base,
    encoded: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A list of blocks made for FLUX.1 does not silently train fewer."""
    with pytest.raises(ParamsError, match=r"'double\.17-18' names no block"):
        run(base("Flex.1-alpha"), encoded, tmp_path / "out", blocks=["double.0", "double.17-18"])
    assert not (tmp_path / "out").exists()


def helper_of(folder: Path) -> Adapter:
    """Return a training adapter with an effect: rank 1 on every layer of the blocks."""
    model = FluxTransformer2DModel.from_pretrained(folder)
    pairs = {}
    for module in lora_modules(Architecture.from_config(model.config), "all"):
        rows, columns = model.get_submodule(module).weight.shape
        up = 0.05 * keyed_normal([rows, 1], "helper up", module)
        pairs[module] = LoraPair(keyed_normal([1, columns], "helper down", module), up, 1.0)
    return Adapter(pairs, {})


@pytest.mark.slow
def test_schnells_training_adapter_is_in_the_loss_and_not_in_the_pictures(
    base: Base,
    encoded: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Base pictures are the base's, to the byte; the loss and what is learnt are others."""
    manifest = base("FLUX.1-schnell")
    path = tmp_path / "helper.safetensors"
    helper = helper_of(tmp_path / "FLUX.1-schnell" / "transformer")
    write_adapter(path, helper)
    pin = {"file": str(path), "repository": None, "revision": None, "sha256": sha256_file(path)}
    plain = run(manifest, encoded, tmp_path / "plain", **SHORT)
    files = run(manifest, encoded, tmp_path / "out", **SHORT, training_adapter=pin)
    assert files["samples/step-0000-0.png"] == plain["samples/step-0000-0.png"]
    one, other = (json.loads(each["metrics.json"]) for each in (plain, files))
    assert one["validation_loss_base"] != other["validation_loss_base"]
    mine = read_adapter(tmp_path / "out" / "adapter.safetensors")
    theirs = read_adapter(tmp_path / "plain" / "adapter.safetensors")
    assert mine.modules.keys() == theirs.modules.keys() == helper.modules.keys()
    assert any(
        not torch.equal(mine.modules[name].up, theirs.modules[name].up) for name in mine.modules
    )
    assert mine.rank == 2


def test_rank_alpha_and_rate_per_block_reach_the_file(
    base: Base,
    encoded: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Ranks differ by block, alpha is folded, and blocks that are not trained are not there."""
    settings = [
        {"blocks": ["double.1"], "rank": 4, "alpha": 1.0, "learning_rate": 0.001},
        {"blocks": ["single.7", "single.20"], "rank": 1, "alpha": 1.0, "learning_rate": 0.02},
    ]
    manifest = base("FLUX.1-dev")
    blocks = ["double.0-2", "single.7", "single.20"]
    run(manifest, encoded, tmp_path / "out", **SHORT, blocks=blocks, block_settings=settings)
    adapter = read_adapter(tmp_path / "out" / "adapter.safetensors")
    ranks = {str(block_of(module)): pair.rank for module, pair in adapter.modules.items()}
    assert ranks == {"double.0": 2, "double.1": 4, "double.2": 2, "single.7": 1, "single.20": 1}
    assert all(pair.scale == 1.0 for pair in adapter.modules.values())
    model = FluxTransformer2DModel.from_pretrained(tmp_path / "FLUX.1-dev" / "transformer")
    before = {name: model.get_parameter(f"{name}.weight").clone() for name in adapter.modules}
    model.load_lora_adapter(str(tmp_path / "out" / "adapter.safetensors"))
    model.fuse_lora()
    model.unload_lora()
    for module, pair in adapter.modules.items():
        change = model.get_parameter(f"{module}.weight") - before[module]
        torch.testing.assert_close(change, pair.delta(), atol=1e-6, rtol=1e-4)
    split(weights=manifest, adapter=tmp_path / "out" / "adapter.safetensors", out=tmp_path / "cut")
    index = read_table(SPLIT_INDEX, tmp_path / "cut" / "index.csv")
    assert dict(zip(index["block"], index["rank"], strict=True)) == ranks
    with safe_open(tmp_path / "cut" / "blocks" / "double.1.safetensors", framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"
    with safe_open(tmp_path / "out" / "adapter.safetensors", framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "Dynamic"
    # AdamW moves every entry of B by about the rate, warm-up and clipping apart.
    largest = dict.fromkeys(ranks, 0.0)
    for module, pair in adapter.modules.items():
        scale = {"double.1": 1.0 / 4, "single.7": 1.0, "single.20": 1.0}
        block = str(block_of(module))
        raw = pair.up.abs().max().item() / scale.get(block, 0.5)
        largest[block] = max(largest[block], raw)
    rates = {"double.1": 0.001, "single.7": 0.02, "single.20": 0.02}
    for block, value in largest.items():
        assert value == pytest.approx(2 * rates.get(block, 0.01), rel=0.1)
