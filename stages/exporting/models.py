"""Which files of a base model ComfyUI wants, by name and folder, and whether a LoRA fits them.

Names and sizes: the repositories' pages on the Hugging Face Hub; folders: ComfyUI's
folder_paths.py, where text encoders may lie in models/text_encoders or in models/clip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Final, Literal

from safetensors import safe_open

from stages.adapters.keys import parse_key
from stages.contracts.blocks import BASE
from stages.contracts.errors import Problem, WeightsError
from stages.contracts.params import FetchParams
from stages.families.architecture import Architecture, block_of, lora_modules, read_architecture

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
_TRANSFORMER: Final = "transformer/config.json"
_SCHEDULER: Final = "scheduler/scheduler_config.json"


def base_files(fetch: FetchParams) -> BaseFiles:
    """Return the files of the base that was trained on, and how its pictures are sampled.

    An unknown base has the names of FLUX.1-dev, or of FLUX.1-schnell if it takes no guidance.
    Single files keep the names that they have in params: they are ComfyUI's already.

    Raises:
        WeightsError: a config of the base model is broken.
    """
    base = _BASES.get(fetch.repository or "") or _resembling(fetch)
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


def _resembling(fetch: FetchParams) -> BaseFiles:
    """Return an unknown base, sampled as its configs say; as FLUX.1-dev where there are none."""
    folder = _config_folder(fetch)
    if folder is None:
        return _DEV
    is_guided = read_architecture(folder).guidance
    return replace(
        _DEV if is_guided else _SCHNELL,
        is_guided=is_guided,
        is_shifted=_is_shifted(folder / _SCHEDULER),
    )


def _config_folder(fetch: FetchParams) -> Path | None:
    """Return the diffusers folder with the base model's configs, None if it is not on this machine.

    `fetch.folder` has them for single files too. Nothing is downloaded.
    """
    folder: Path | None = Path(fetch.folder)
    if fetch.repository is not None:
        folder = _cached_folder(fetch.repository, fetch.revision)
    if folder is None or not all((folder / name).is_file() for name in (_TRANSFORMER, _SCHEDULER)):
        return None
    return folder


def _cached_folder(repository: str, revision: str | None) -> Path | None:
    # Here, because it takes a moment to import, and most runs have no use for it.
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, _TRANSFORMER, revision=revision)
    return Path(found).parents[1] if isinstance(found, str) else None


def _is_shifted(config: Path) -> bool:
    """Return whether a FlowMatchEulerDiscreteScheduler shifts by resolution; diffusers' own is no.

    Raises:
        WeightsError: the config is not JSON.
    """
    try:
        return bool(json.loads(config.read_text(encoding="utf-8")).get("use_dynamic_shifting"))
    except (OSError, ValueError, AttributeError) as error:
        problem = Problem(str(config), f"cannot be read ({error})", "Download the configs again.")
        raise WeightsError("The base model cannot be read", [problem]) from error


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
