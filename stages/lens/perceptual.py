"""How far two pictures are apart in what they show, by a model that a person has weights for.

CLIP (arXiv 2103.00020) compares what a caption would say, DINOv2 (arXiv 2304.07193) parts and
materials. Both are used as transformers has them, on pictures scaled to the model's own size, and
compared by the cosine. LPIPS (lpips.py) compares what is where, at the pictures' own size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from stages.adapters.listing import list_names
from stages.contracts.errors import Problem, WeightsError
from stages.contracts.params import DistanceParams
from stages.lens.lpips import PerceptualFeatures, odd_tensors
from stages.runtime.files import sha256_file

Embed: TypeAlias = Callable[[npt.NDArray[np.uint8]], torch.Tensor]
"""From a picture, RGB uint8 [H, W, 3], to a vector for `distance`, float32 on the CPU.

CLIP's and DINOv2's have length 1.
"""

_WEIGHTS: Final = "model.safetensors"
_NEEDED: Final = {
    "clip": ("config.json", "preprocessor_config.json", _WEIGHTS),
    "dinov2": ("config.json", "preprocessor_config.json", _WEIGHTS),
    "lpips": (_WEIGHTS,),
}


def check_models(models: Sequence[DistanceParams]) -> None:
    """Refuse models whose files are missing or are not those that params name.

    Raises:
        WeightsError: with every such model.
    """
    problems = [problem for model in models for problem in _problems(model)]
    if problems:
        raise WeightsError("Distances cannot be measured", problems)


def open_embedder(model: DistanceParams, device: torch.device) -> Embed:
    """Return the model as a function of single pictures, which batches cannot change."""
    folder = Path(model.folder)
    if model.metric == "lpips":
        return _open_lpips(folder, device)
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (_per_channel(settings[f"image_{name}"], device) for name in ("mean", "std"))
    network, side_px = _load(model.metric, folder, device)

    @torch.no_grad()
    def embed(picture: npt.NDArray[np.uint8]) -> torch.Tensor:
        pixels = torch.tensor(picture, device=device).permute(2, 0, 1)[None].float() / 255.0
        scaled = torch.nn.functional.interpolate(
            pixels, (side_px, side_px), mode="bicubic", antialias=True
        )
        vector = network((scaled.clamp(0.0, 1.0) - mean) / std)[0].float().cpu()
        return torch.nn.functional.normalize(vector, dim=0)

    return embed


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return half the squared distance of two vectors.

    Of vectors of length 1 that is 1 - cosine: 0 for equal ones, at most 2.
    """
    return float((a.double() - b.double()).square().sum()) / 2.0


def _open_lpips(folder: Path, device: torch.device) -> Embed:
    network = PerceptualFeatures(folder / _WEIGHTS).to(device).eval()

    @torch.no_grad()
    def embed(picture: npt.NDArray[np.uint8]) -> torch.Tensor:
        pixels = torch.tensor(picture, device=device).permute(2, 0, 1)[None].float() / 255.0
        vector: torch.Tensor = network(pixels)[0].cpu()
        return vector

    return embed


def _problems(model: DistanceParams) -> list[Problem]:
    folder = Path(model.folder)
    where = f"evaluate.distances {model.metric}"
    lacking = [name for name in _NEEDED[model.metric] if not (folder / name).is_file()]
    if lacking:
        remedy = "Download the model in transformers' layout, or leave it out."
        return [Problem(where, f"{folder} has no {', '.join(lacking)}", remedy)]
    found = sha256_file(folder / _WEIGHTS)
    if found != model.sha256:
        return [Problem(where, f"{folder / _WEIGHTS} has SHA-256 {found}", "Correct one of both.")]
    if model.metric == "lpips" and (odd := odd_tensors(folder / _WEIGHTS)):
        remedy = "Name VGG16 as torchvision or timm has it (timm/vgg16.tv_in1k on the Hub)."
        return [Problem(where, f"{folder / _WEIGHTS} is not VGG16: {list_names(odd)}", remedy)]
    return []


def _load(
    metric: str, folder: Path, device: torch.device
) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    # Imported where they are needed: without models at hand evaluate starts seconds earlier.
    from transformers import CLIPVisionModelWithProjection, Dinov2Model

    kind: Any = CLIPVisionModelWithProjection if metric == "clip" else Dinov2Model
    network = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    network = network.to(device).eval().requires_grad_(False)
    field = "image_embeds" if metric == "clip" else "pooler_output"

    def run(pixels: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = getattr(network(pixel_values=pixels), field)
        return output

    return run, int(network.config.image_size)


def _per_channel(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
