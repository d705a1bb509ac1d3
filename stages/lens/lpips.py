"""LPIPS, version 0.1 on VGG16 (arXiv 1801.03924), as a vector per picture.

At five depths of the network a picture's features are scaled to length 1 at every place. LPIPS of
two pictures is the sum over depths of the mean over places of the weighted squared difference. The
weights of the 1,472 channels are those of the authors' package (lpips-layers.safetensors, licence
beside it); VGG16's own are a person's file. With the roots of the weights in the vectors, it is
plain squared distance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

_LAYERS: Final = Path(__file__).with_name("lpips-layers.safetensors")
_CHANNELS: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Convolutions of each depth (VGG16, arXiv 1409.1556, configuration D)."""
_SHIFT: Final = (-0.030, -0.088, -0.188)
_SCALE: Final = (0.458, 0.448, 0.450)
_SMALLEST: Final = 1e-10


def vgg16_keys() -> dict[str, tuple[int, ...]]:
    """Return the tensors that a file of VGG16 must have, with their shapes.

    The names are torchvision's, which timm's files on the Hub have as well.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    place, width = 0, 3
    for convolutions in _CHANNELS:
        for channels in convolutions:
            shapes[f"features.{place}.weight"] = (channels, width, 3, 3)
            shapes[f"features.{place}.bias"] = (channels,)
            place, width = place + 2, channels  # a convolution and its ReLU
        place += 1  # the pooling
    return shapes


def odd_tensors(weights: Path) -> list[str]:
    """Return the tensors of VGG16 that a safetensors file lacks, or has in another shape."""
    with safe_open(weights, framework="pt") as file:
        held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return [name for name, shape in vgg16_keys().items() if held.get(name) != shape]


class PerceptualFeatures(nn.Module):
    """VGG16's features at five depths, weighted: half the squared distance of two is LPIPS."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weights: Path) -> None:
        """Read VGG16 from a safetensors file that has at least `vgg16_keys`."""
        super().__init__()
        tensors = load_file(weights)
        steps: list[nn.Module] = []
        places = iter(name for name in vgg16_keys() if name.endswith("weight"))
        self.depths = nn.ModuleList()
        for convolutions in _CHANNELS:
            for _ in convolutions:
                name = next(places)
                weight, bias = tensors[name].float(), tensors[name.replace("weight", "bias")]
                layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias.float())
                steps += [layer, nn.ReLU()]
            self.depths.append(nn.Sequential(*steps))
            steps = [nn.MaxPool2d(2)]
        self.requires_grad_(False)
        for depth, weight in enumerate(load_file(_LAYERS).values()):
            self.register_buffer(f"root_{depth}", (2.0 * weight).sqrt().view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the vector [B, numbers] of pictures [B, 3, H, W] in 0..1."""
        features = (2.0 * pixels - 1.0 - self.shift) / self.scale
        parts = []
        for depth, layers in enumerate(self.depths):
            features = layers(features)
            length = features.square().sum(dim=1, keepdim=True).sqrt()
            places = features.shape[2] * features.shape[3]
            root = self.get_buffer(f"root_{depth}") / places**0.5
            parts.append((features / (length + _SMALLEST) * root).flatten(start_dim=1))
        return torch.cat(parts, dim=1)
