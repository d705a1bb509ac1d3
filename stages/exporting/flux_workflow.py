"""One workflow for ComfyUI: FLUX with a LoRA, or with two of them side by side.

The sampler is ours (families/flow.py): Euler steps over sigmas that fall evenly from 1, shifted by
resolution as FLUX.1-dev's own sampler does. FLUX.1-schnell has neither shift nor guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stages.exporting.graph import Node, Output
from stages.exporting.models import BaseFiles
from stages.exporting.sockets import NOTE

_COLUMN, _ROW, _WIDTH = 360, 170, 320
_MAX_SHIFT: Final = 1.15
_BASE_SHIFT: Final = 0.5
"""FLUX.1-dev's scheduler_config.json, and ComfyUI's own values."""


@dataclass(frozen=True)
class Dressing:
    """A LoRA: its name in file names of pictures, its file in models/loras, and its strength."""

    name: str
    file: str
    strength: float


@dataclass(frozen=True)
class Scene:
    """What is drawn, and how: prompt with its trigger, seed, steps, guidance, size in pixels."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    width: int
    height: int


def flux_workflow(
    base: BaseFiles, dressings: Sequence[Dressing], scene: Scene, prefix: str, notes: Sequence[str]
) -> list[Node]:
    """Return the nodes, those of each LoRA in a band of their own; notes stand on the left."""
    build = _Build()
    for row, text in enumerate(notes):
        build.add(NOTE, "Note", (-1.2, 2.0 * row), tall=1.8, text=text)
    model = build.add(
        "UNETLoader", "Base model", (0, 0), unet_name=base.transformer.name, weight_dtype="default"
    )
    clip = build.add(
        "DualCLIPLoader",
        "Text encoders",
        (0, 1),
        clip_name1=base.clip.name,
        clip_name2=base.t5.name,
        type="flux",
        device="default",
    )
    vae = build.add("VAELoader", "VAE", (0, 2), vae_name=base.vae.name)
    prompt = build.add(
        "CLIPTextEncode", "Prompt with the trigger", (1, 1), clip=clip, text=scene.prompt
    )
    if base.is_guided:
        prompt = build.add(
            "FluxGuidance", "Guidance", (2, 1), conditioning=prompt, guidance=scene.guidance
        )
    latent = build.add(
        "EmptySD3LatentImage",
        "Size",
        (1, 2),
        width=scene.width,
        height=scene.height,
        batch_size=1,
    )
    noise = build.add("RandomNoise", "Seed", (1, 3), noise_seed=scene.seed)
    sampler = build.add("KSamplerSelect", "Sampler", (2, 2), sampler_name="euler")
    shared = _Shared(prompt, latent, noise, sampler, vae)
    for band, dressing in enumerate(dressings):
        _add_band(build, 4.5 * band, model, shared, (base, dressing, scene, prefix))
    return build.nodes


@dataclass(frozen=True)
class _Shared:
    """What all bands draw with."""

    text: Output
    latent: Output
    noise: Output
    sampler: Output
    vae: Output


class _Build:
    """The nodes so far; numbers follow the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(
        self,
        kind: str,
        title: str,
        place: tuple[float, float],
        *,
        tall: float = 0.8,
        **inputs: Output | str | float,
    ) -> Output:
        """Add a node at (column, row) and return its first output."""
        left, top = round(place[0] * _COLUMN), round(place[1] * _ROW)
        box = (left, top, _WIDTH, round(tall * _ROW))
        self.nodes.append(Node(len(self.nodes) + 1, kind, title, inputs, box))
        return Output(len(self.nodes), 0)


def _add_band(
    build: _Build,
    top: float,
    model: Output,
    shared: _Shared,
    what: tuple[BaseFiles, Dressing, Scene, str],
) -> None:
    base, dressing, scene, prefix = what
    model = build.add(
        "LoraLoaderModelOnly",
        f"LoRA: {dressing.name}",
        (3, top),
        model=model,
        lora_name=dressing.file,
        strength_model=dressing.strength,
    )
    if base.is_shifted:
        model = build.add(
            "ModelSamplingFlux",
            "Shift by resolution",
            (4, top),
            tall=1.0,
            model=model,
            max_shift=_MAX_SHIFT,
            base_shift=_BASE_SHIFT,
            width=scene.width,
            height=scene.height,
        )
    guider = build.add(
        "BasicGuider", "Guider", (4, top + 1.2), model=model, conditioning=shared.text
    )
    sigmas = build.add(
        "BasicScheduler",
        "Steps",
        (4, top + 2.2),
        model=model,
        scheduler="simple",
        steps=scene.steps,
        denoise=1.0,
    )
    drawn = build.add(
        "SamplerCustomAdvanced",
        f"Draw: {dressing.name}",
        (5, top),
        tall=1.0,
        noise=shared.noise,
        guider=guider,
        sampler=shared.sampler,
        sigmas=sigmas,
        latent_image=shared.latent,
    )
    picture = build.add("VAEDecode", "Decode", (5, top + 1.3), samples=drawn, vae=shared.vae)
    build.add(
        "SaveImage",
        f"Picture: {dressing.name}",
        (6, top),
        tall=2.5,
        images=picture,
        filename_prefix=f"{prefix}-{dressing.name}",
    )
