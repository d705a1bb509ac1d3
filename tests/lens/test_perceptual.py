"""Distances by small random models of the very classes that the real ones are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
)

from stages.contracts.errors import WeightsError
from stages.contracts.params import DistanceParams
from stages.lens.lpips import vgg16_keys
from stages.lens.perceptual import check_models, distance, open_embedder
from stages.runtime.files import sha256_file

CPU = torch.device("cpu")
SIDE_PX = 28
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def write_model(model: PreTrainedModel, folder: Path) -> tuple[Path, str]:
    """Write a model as transformers does; return its folder and the SHA-256 of its weights."""
    model.eval().save_pretrained(folder)
    settings = {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder, sha256_file(folder / "model.safetensors")


def write_dinov2(folder: Path) -> tuple[Path, str]:
    """Write a small random DINOv2."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE_PX
    )
    return write_model(Dinov2Model(config), folder)


def write_clip(folder: Path) -> tuple[Path, str]:
    """Write a small random CLIP, its picture half."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE_PX,
        patch_size=7,
        projection_dim=16,
    )
    return write_model(CLIPVisionModelWithProjection(config), folder)


WRITERS = {"dinov2": write_dinov2, "clip": write_clip}


def noise(seed: int, side: int) -> np.ndarray:
    """A picture of noise."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("metric", sorted(WRITERS))
def test_distances_are_those_of_the_model(metric: str, tmp_path: Path) -> None:
    """A picture of the model's own size gives the model's own output, scaled to length 1."""
    folder, sha256 = WRITERS[metric](tmp_path / metric)
    model = DistanceParams(metric=metric, folder=str(folder), sha256=sha256)
    check_models([model])
    embed = open_embedder(model, CPU)
    a, b = noise(0, SIDE_PX), noise(1, SIDE_PX)
    kind = Dinov2Model if metric == "dinov2" else CLIPVisionModelWithProjection
    network = kind.from_pretrained(folder)
    pixels = (torch.from_numpy(np.stack([a, b])).permute(0, 3, 1, 2) / 255.0).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        output = network(pixel_values=(pixels - mean) / std)
    vectors = output.pooler_output if metric == "dinov2" else output.image_embeds
    cosine = torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0)
    assert distance(embed(a), embed(b)) == pytest.approx(1.0 - float(cosine), abs=1e-4)
    assert distance(embed(a), embed(a)) == pytest.approx(0.0, abs=1e-6)
    assert embed(noise(2, 64)).shape == vectors[0].shape


def test_missing_and_other_weights_are_refused_together(tmp_path: Path) -> None:
    """Every model that cannot be used is in one message, with what to do."""
    folder, _ = write_dinov2(tmp_path / "dinov2")
    models = [
        DistanceParams(metric="clip", folder=str(tmp_path / "nothing"), sha256="0" * 64),
        DistanceParams(metric="dinov2", folder=str(folder), sha256="1" * 64),
    ]
    with pytest.raises(WeightsError) as caught:
        check_models(models)
    message = str(caught.value)
    assert "has no config.json, preprocessor_config.json, model.safetensors" in message
    assert f"has SHA-256 {sha256_file(folder / 'model.safetensors')}" in message


def write_vgg16(folder: Path) -> tuple[Path, str]:
    """Write a random VGG16, the same every time."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator)
        * ((2 / (9 * shape[1])) ** 0.5 if len(shape) == 4 else 0.1)
        for name, shape in vgg16_keys().items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder, sha256_file(folder / "model.safetensors")


def test_lpips_is_that_of_its_authors(tmp_path: Path) -> None:
    """The numbers are those of the package lpips 0.1.4 with the same VGG16 and these pictures."""
    folder, sha256 = write_vgg16(tmp_path / "vgg16")
    model = DistanceParams(metric="lpips", folder=str(folder), sha256=sha256)
    check_models([model])
    embed = open_embedder(model, CPU)
    half = noise(4, 64)
    half[:32] = 255 - half[:32]
    for a, b, theirs in (
        (noise(0, 64), noise(1, 64), 0.14584298),
        (noise(2, 48), noise(3, 48), 0.15114813),
        (noise(4, 64), half, 0.10267118),
        (noise(0, 64), noise(0, 64), 0.0),
    ):
        assert distance(embed(a), embed(b)) == pytest.approx(theirs, rel=1e-5)


def test_weights_of_another_network_are_no_lpips(tmp_path: Path) -> None:
    """What the file lacks is named before any picture is looked at."""
    folder, sha256 = write_dinov2(tmp_path / "dinov2")
    model = DistanceParams(metric="lpips", folder=str(folder), sha256=sha256)
    with pytest.raises(WeightsError, match=r"is not VGG16: .*features\.0\.weight"):
        check_models([model])
