"""Base weights without loading the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.base_weights import open_linear_weights
from stages.adapters.compatibility import linear_shapes
from stages.contracts.errors import WeightsError


def refusal(folder: Path) -> str:
    """Return the message with which the weights in `folder` are refused."""
    with pytest.raises(WeightsError) as caught, open_linear_weights(folder):
        pass
    return str(caught.value)


@pytest.mark.parametrize("shard_size", ["10GB", "200KB"])
def test_one_file_or_shards_give_the_loaded_model(
    tmp_path: Path, tiny_flux: FluxTransformer2DModel, shard_size: str
) -> None:
    """Shapes and weights equal those of the model that diffusers saved, sharded or not."""
    tiny_flux.save_pretrained(tmp_path / "transformer", max_shard_size=shard_size)
    files = list((tmp_path / "transformer").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "200KB")
    with open_linear_weights(tmp_path) as linears:
        assert linears.shapes == linear_shapes(tiny_flux)
        for module in linears.shapes:
            assert torch.equal(linears.read(module), tiny_flux.get_submodule(module).weight)


def test_the_embedded_model_has_504_linear_layers(nano_flux: Path) -> None:
    """FLUX.1's own count: 494 in the blocks and 10 around them."""
    with open_linear_weights(nano_flux) as linears:
        assert len(linears.shapes) == 504


def test_missing_and_broken_shards_are_named_together(
    tmp_path: Path, tiny_flux: FluxTransformer2DModel
) -> None:
    """Half a download: one message names each file."""
    folder = tmp_path / "transformer"
    tiny_flux.save_pretrained(folder, max_shard_size="200KB")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    message = refusal(tmp_path)
    assert first.name in message
    assert second.name in message
    assert "dvc repro --force fetch" in message


def test_a_missing_file_and_a_broken_index_are_refused(tmp_path: Path) -> None:
    """No weights, and an index that is none."""
    assert "diffusion_pytorch_model.safetensors: cannot be read" in refusal(tmp_path)
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.parent.mkdir()
    for text in ("{", "{}", json.dumps({"weight_map": []})):
        index.write_text(text)
        assert "no index of weights" in refusal(tmp_path)
