"""Our reader and writers against diffusers' converters and PEFT's merge, at FLUX.1's shape too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from stages.adapters.attach import attach_adapter, detach
from stages.adapters.compatibility import linear_shapes, require_fit
from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.kohya_file import write_kohya
from stages.adapters.module import Adapter
from stages.contracts.blocks import BASE
from stages.contracts.errors import AdapterError
from stages.families.architecture import block_of
from stages.families.noise import keyed_normal
from tests.adapters.formats.foreign_files import FORMATS, Format, write_foreign

Velocity = Callable[[FluxTransformer2DModel], torch.Tensor]
Shapes = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def flux_1() -> Shapes:
    """The Linear layers of FLUX.1, from a model that takes no memory."""
    with torch.device("meta"):
        return linear_shapes(FluxTransformer2DModel(guidance_embeds=True))


def effect(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return B A x for one x: two low-rank changes that agree there are equal."""
    return up @ (down @ keyed_normal((down.shape[1],), "x"))


def compare(read: Adapter, theirs: dict[str, torch.Tensor], modules: set[str]) -> None:
    """Fail unless diffusers has exactly `modules`, each with our Delta W."""
    found = {name.removeprefix("transformer.").partition(".lora_")[0] for name in theirs}
    assert found == modules
    for module in modules:
        names = [
            next(
                prefix + module
                for prefix in ("transformer.", "")
                if prefix + module + end in theirs
            )
            + end
            for end in (".lora_A.weight", ".lora_B.weight")
        ]
        pair = read.modules[module]
        torch.testing.assert_close(
            pair.scale * effect(pair.down, pair.up),
            effect(theirs[names[0]], theirs[names[1]]),
            rtol=1e-4,
            atol=1e-3,
        )


@pytest.mark.parametrize("name", ["kohya sd-scripts", "XLabs", "PEFT, original names"])
def test_a_file_of_flux_1_is_to_us_what_it_is_to_diffusers(
    name: str, flux_1: Shapes, tmp_path: Path
) -> None:
    """Rank 1 at the real shape, through diffusers' own three converters."""
    # Without most layers outside the blocks: diffusers drops the alphas of the final one of a kohya
    # file, and in PEFT's it knows `final_layer.linear` alone.
    case = "two blocks" if FORMATS[name].alpha else "full"
    foreign = write_foreign(FORMATS[name], case, flux_1, 1, dense=False)
    path = tmp_path / "a.safetensors"
    known = {
        key: tensor
        for key, tensor in foreign.tensors.items()
        if "_in." not in key and "adaLN" not in key
    }
    safetensors.torch.save_file(known, path)
    read = read_adapter(path)
    assert (
        len(read.modules)
        == {"kohya sd-scripts": 20, "XLabs": 304, "PEFT, original names": 495}[name]
    )
    require_fit(read, flux_1)
    theirs = FluxPipeline.lora_state_dict(str(path))
    compare(read, theirs, set(read.modules))


@pytest.mark.parametrize("fused", [True, False], ids=["one A", "an A each"])
def test_diffusers_reads_our_kohya_file_at_flux_1s_shape(
    fused: bool, flux_1: Shapes, tmp_path: Path
) -> None:
    """All 504 layers, block-diagonal or not; 504 keep their Delta W on both readers."""
    name = "kohya sd-scripts" if fused else "diffusers, ai-toolkit"
    format_ = FORMATS[name]
    plain = Format(format_.prefix, format_.layers, format_.flat, format_.ends, alpha=False)
    foreign = write_foreign(plain, "full", flux_1, 1, dense=False)
    safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors")
    source = read_adapter(tmp_path / "a.safetensors")
    path = tmp_path / "b.safetensors"
    write_kohya(path, source)
    theirs = FluxPipeline.lora_state_dict(str(path))
    assert len(source.modules) == 504
    compare(source, theirs, set(source.modules))
    compare(read_adapter(path), theirs, set(source.modules))


def test_another_width_is_refused_with_every_layer(
    flux_1: Shapes, shapes: Shapes, tmp_path: Path
) -> None:
    """A LoRA of FLUX.1 on a smaller model: shapes and block counts in one message."""
    foreign = write_foreign(FORMATS["Black Forest Labs"], "full", flux_1, 1, dense=False)
    safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError) as caught:
        require_fit(read_adapter(tmp_path / "a.safetensors"), shapes)
    message = str(caught.value)
    assert "19 double blocks and 38 single blocks" in message
    assert "the base model has 2 double blocks and 3 single blocks" in message
    assert "shapes [out, in]: differ" in message


def test_pictures_velocity_is_the_same_from_our_kohya_file(
    scaled_adapter: Adapter,
    tiny_pipeline: FluxPipeline,
    velocity: Velocity,
    tmp_path: Path,
) -> None:
    """FluxPipeline loads the kohya twin and predicts what we predict.

    Its converter cuts linear1 at FLUX.1's width and leaves layers outside the blocks to nobody, so
    these two are not in the file.
    """
    kept = {
        module: pair
        for module, pair in scaled_adapter.modules.items()
        if block_of(module) != BASE
        and not (module.startswith("single") and ("attn" in module or "proj_mlp" in module))
    }
    if not kept:
        return
    transformer = tiny_pipeline.transformer
    attach_adapter(transformer, Adapter(kept, {}))
    ours = velocity(transformer)
    detach(transformer)
    write_kohya(tmp_path / "a.safetensors", Adapter(kept, {}))
    tiny_pipeline.load_lora_weights(str(tmp_path / "a.safetensors"))
    torch.testing.assert_close(velocity(transformer), ours, rtol=1e-4, atol=1e-4)


def test_pefts_merge_is_our_delta(
    tiny_pipeline: FluxPipeline, shapes: Shapes, tmp_path: Path
) -> None:
    """A kohya file, written for diffusers, merged by PEFT: W + Delta W in every layer."""
    foreign = write_foreign(FORMATS["kohya sd-scripts"], "full", shapes)
    safetensors.torch.save_file(foreign.tensors, tmp_path / "a.safetensors")
    write_adapter(tmp_path / "b.safetensors", read_adapter(tmp_path / "a.safetensors"))
    transformer = tiny_pipeline.transformer
    before = {name: transformer.get_submodule(name).weight.clone() for name in shapes}
    tiny_pipeline.load_lora_weights(str(tmp_path / "b.safetensors"))
    tiny_pipeline.fuse_lora(components=["transformer"])
    tiny_pipeline.unload_lora_weights()
    for name, weight in before.items():
        merged = transformer.get_submodule(name).weight
        torch.testing.assert_close(merged - weight, foreign.deltas[name], rtol=1e-4, atol=1e-4)
