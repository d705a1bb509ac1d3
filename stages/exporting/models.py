"""Which files of a base model ComfyUI wants, by name and folder, and whether a LoRA fits them.

Names and sizes: the repositories' pages on the Hugging Face Hub; folders: ComfyUI's
folder_paths.py, where text encoders may lie in models/text_encoders or in models/clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Final, Literal

from safetensors import safe_open

from stages.adapters.keys import parse_key
from stages.contracts.blocks import BASE
from stages.contracts.params import FetchParams
from stages.families.architecture import Architecture, block_of, lora_modules

Fit = Literal["fits", "other shapes", "other names"]

_WIDTH: Final = 3072
_LAYERS: Final = frozenset(lora_modules(Architecture(19, 38, _WIDTH, 16, guidance=True), "all"))
# (rows, columns) of a Linear layer's weight, in widths (black-forest-labs/flux, modules/layers.py)
_SHAPES: Final = {
    "ff.net.0.proj": (4, 1),
    "ff.net.2": (1, 4),
    "ff_context.net.0.proj": (4, 1),
    "ff_context.net.2": (1, 4),
    "norm1.linear": (6, 1),
    "norm1_context.linear": (6, 1),
    "norm.linear": (3, 1),
    "proj_mlp": (4, 1),
    "proj_out": (1, 5),
}


@dataclass(frozen=True)
class ModelFile:
    """A file of the base model: name, folder below models/, where it is to be had, its size."""

    name: str
    folder: str
    source: str
    size: str


@dataclass(frozen=True)
class BaseFiles:
    """The four files of a base model, and how its pictures are sampled."""

    title: str
    transformer: ModelFile
    clip: ModelFile
    t5: ModelFile
    vae: ModelFile
    is_guided: bool
    is_shifted: bool

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """All four, in the order of the loaders."""
        return (self.transformer, self.clip, self.t5, self.vae)


_ENCODERS: Final = "comfyanonymous/flux_text_encoders"
_DEV: Final = BaseFiles(
    title="FLUX.1-dev",
    transformer=ModelFile(
        "flux1-dev.safetensors", "diffusion_models", "black-forest-labs/FLUX.1-dev", "23.8 GB"
    ),
    clip=ModelFile("clip_l.safetensors", "clip", _ENCODERS, "246 MB"),
    t5=ModelFile("t5xxl_fp16.safetensors", "clip", _ENCODERS, "9.79 GB"),
    vae=ModelFile("ae.safetensors", "vae", "black-forest-labs/FLUX.1-dev", "335 MB"),
    is_guided=True,
    is_shifted=True,
)
_SCHNELL: Final = replace(
    _DEV,
    title="FLUX.1-schnell",
    transformer=ModelFile(
        "flux1-schnell.safetensors",
        "diffusion_models",
        "black-forest-labs/FLUX.1-schnell",
        "23.8 GB",
    ),
    vae=replace(_DEV.vae, source="black-forest-labs/FLUX.1-schnell"),
    is_guided=False,
    is_shifted=False,
)
_FLEX: Final = replace(
    _DEV,
    title="Flex.1-alpha",
    transformer=ModelFile(
        "Flex.1-alpha.safetensors", "diffusion_models", "ostris/Flex.1-alpha", "16.3 GB in bfloat16"
    ),
    vae=replace(_DEV.vae, source="black-forest-labs/FLUX.1-schnell"),
)
_BASES: Final = {
    "black-forest-labs/FLUX.1-dev": _DEV,
    "black-forest-labs/FLUX.1-schnell": _SCHNELL,
    "ostris/Flex.1-alpha": _FLEX,
}


def base_files(fetch: FetchParams) -> BaseFiles:
    """Return the files of the base that was trained on; FLUX.1-dev's names for an unknown one.

    Single files keep the names that they have in params: they are ComfyUI's already.
    """
    base = _BASES.get(fetch.repository or "", _DEV)
    if (own := fetch.single_files) is None:
        return base

    def named(file: ModelFile, path: str) -> ModelFile:
        return replace(file, name=PurePath(path).name, source=path, size="as you have it")

    return replace(
        base,
        title=PurePath(own.transformer).stem,
        transformer=named(base.transformer, own.transformer),
        clip=named(base.clip, own.text_encoder),
        t5=named(base.t5, own.text_encoder_2),
        vae=named(base.vae, own.autoencoder),
    )


def flux_shape(module: str) -> tuple[int, int]:
    """Return (rows, columns) of a block's Linear layer in FLUX.1, whose width is 3072.

    Raises:
        ValueError: FLUX.1 has no such layer in its 19 double and 38 single blocks.
    """
    if module not in _LAYERS:
        raise ValueError(f"FLUX.1 has no Linear layer {module!r} in its blocks")
    rows, columns = _SHAPES.get(module.partition("blocks.")[2].partition(".")[2], (1, 1))
    return (rows * _WIDTH, columns * _WIDTH)


def flux_fit(adapter: Path) -> Fit:
    """Return whether a LoRA file has the names and shapes of FLUX.1's blocks.

    `other names` is no verdict: ComfyUI reads kohya's and others' names too, which are not
    compared here.
    """
    with safe_open(adapter, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    compared = False
    for name, shape in shapes.items():
        try:
            key = parse_key(name)
        except ValueError:
            return "other names"
        if key.part == "alpha" or block_of(key.module) == BASE:
            continue
        compared = True
        if key.module not in _LAYERS:
            return "other shapes"
        rows, columns = flux_shape(key.module)
        if (shape[-1] != columns) if key.part == "down" else (shape[0] != rows):
            return "other shapes"
    return "fits" if compared else "other names"
