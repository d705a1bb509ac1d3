"""Two more LoRAs on nano-flux beside the demo's: a style, and another object.

    python -m benchmarks.subjects --out FOLDER

draws 18 + 4 pictures of each with their captions, and trains on them with the stages and
params.yaml as they are, trigger and prompts apart. A LoRA that is there already is not trained
again. The chooser of blocks is judged on three LoRAs, not on the one that it was made with.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from nano.drawing import (
    CENTRES,
    RADII,
    Colour,
    Point,
    draw_scene,
    paint_background,
    paint_shape,
    rectangle,
)
from nano.drawing import disc as circle
from nano.world import COLOURS, KINDS, PALETTE, POSITIONS, SHAPES, SIZES, Scene
from stages.caption import caption
from stages.contracts.params import Params, PromptsParams, load_params
from stages.encode import encode
from stages.families.weights import Manifest, WeightFile, write_manifest
from stages.prepare import prepare
from stages.runtime.console import prepare_process
from stages.runtime.files import sha256_file
from stages.train import train

ROOT: Final = Path(__file__).parents[1]
SIDE_PX: Final = 1024
TRAINING: Final = 18
PICTURES: Final = 22
_SUPERSAMPLING: Final = 2
_BACKGROUNDS: Final = ("yellow", "blue", "white", "green", "purple", "pink", "cyan")
_PAPER: Final = np.array([250.0, 238.0, 208.0])
_INK: Final = np.array([70.0, 34.0, 20.0])
_ROOF: Final = (196, 52, 60)
_WALL: Final = (244, 214, 160)
_DOOR: Final = (96, 60, 120)
_GLASS: Final = (110, 200, 190)


@dataclass(frozen=True)
class Subject:
    """What a LoRA is of: its trigger word, its pictures, and the prompts of the lens."""

    name: str
    trigger: str
    draw: Callable[[Scene, int], Image.Image]
    caption: Callable[[Scene], str]
    prompts: PromptsParams


def scenes() -> list[Scene]:
    """Return scenes that cover every place, size and background, each with another caption."""
    return [
        Scene(
            shape=SHAPES[number % len(SHAPES)],
            colour=COLOURS[(3 * number + 1) % len(COLOURS)],
            size=SIZES[(number + number // 3) % len(SIZES)],
            position=POSITIONS[number % len(POSITIONS)],
            kind=KINDS[(number + number // 4) % len(KINDS)],
            background=_BACKGROUNDS[number % len(_BACKGROUNDS)],
        )
        for number in range(PICTURES)
    ]


def inked(scene: Scene, seed: int) -> Image.Image:
    """Return the scene as brown ink on paper: hatched where it is dark, RGB [1024, 1024]."""
    plain = draw_scene(scene, SIDE_PX, np.random.default_rng(seed))
    light = np.asarray(plain.convert("L"), dtype=np.float64)[..., None] / 255.0
    rows, columns = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    wave = 0.5 + 0.5 * np.cos((rows + columns) * (2.0 * np.pi * 16.0 / SIDE_PX))[..., None]
    tone = np.clip(light + 0.35 * (wave - 0.5), 0.0, 1.0)
    pixels = _INK + (_PAPER - _INK) * tone
    return Image.fromarray(pixels.round().astype(np.uint8))


def house(scene: Scene, seed: int) -> Image.Image:
    """Return a house in the scene's place, RGB [1024, 1024]; its tilt varies with `seed`."""
    side = SIDE_PX * _SUPERSAMPLING
    image = Image.new("RGB", (side, side))
    paint_background(image, scene.kind, PALETTE[scene.background], (0, 0, side))
    centre_x, centre_y = CENTRES[scene.position]
    radius = RADII[scene.size] * side
    lean = float(np.random.default_rng(seed).uniform(-0.06, 0.06))
    for polygon, colour in _house_parts():
        placed = [
            (centre_x * side + radius * (x + lean * y), centre_y * side + radius * y)
            for x, y in polygon
        ]
        paint_shape(image, [placed], colour, 0.012 * side * (colour in (_ROOF, _WALL)))
    return image.reduce(_SUPERSAMPLING)


def _house_parts() -> list[tuple[list[Point], Colour]]:
    return [
        (rectangle(0.34, -0.92, 0.58, -0.4), _DOOR),
        (rectangle(-0.7, -0.1, 0.7, 0.9), _WALL),
        ([(0.0, -0.98), (0.98, -0.06), (-0.98, -0.06)], _ROOF),
        (rectangle(-0.2, 0.3, 0.2, 0.9), _DOOR),
        (rectangle(-0.58, 0.1, -0.3, 0.42), _GLASS),
        (rectangle(0.3, 0.1, 0.58, 0.42), _GLASS),
        (circle(0.0, -0.4, 0.2), _GLASS),
    ]


INK: Final = Subject(
    "style",
    "ink",
    inked,
    lambda scene: f"ink, {scene.caption}",
    PromptsParams(
        develop=[
            "ink, a large red circle in the middle, plain yellow background",
            "ink, a small blue star on the left, striped green background",
            "ink, a medium white heart at the top, checkered pink background",
        ],
        held_out=[
            "ink, a medium orange ring on the right, checkered blue background",
            "ink, a large green square at the bottom, dotted white background",
        ],
        without_trigger=["a large red circle in the middle, plain yellow background"],
        seeds=[0, 1],
        held_out_seeds=[100, 101],
    ),
)
HOUSE: Final = Subject(
    "object",
    "vel",
    house,
    lambda scene: (
        f"vel, a {scene.size} house {scene.position}, {scene.kind} {scene.background} background"
    ),
    PromptsParams(
        develop=[
            "vel, a large house in the middle, plain yellow background",
            "vel, a small house on the left, striped green background",
            "vel, a medium house at the top, checkered pink background",
        ],
        held_out=[
            "vel, a medium house on the right, checkered blue background",
            "vel, a large house at the bottom, dotted white background",
        ],
        without_trigger=["a large red circle in the middle, plain yellow background"],
        seeds=[0, 1],
        held_out_seeds=[100, 101],
    ),
)
SUBJECTS: Final = (INK, HOUSE)


def draw_subject(subject: Subject, folder: Path) -> None:
    """Write the subject's pictures and captions into folder/train and folder/validation."""
    for number, scene in enumerate(scenes()):
        place = folder / ("train" if number < TRAINING else "validation")
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{subject.name}-{number:02d}.png"
        subject.draw(scene, number).save(path)
        path.with_suffix(".txt").write_text(f"{subject.caption(scene)}\n", encoding="utf-8")


def base_manifest(folder: Path) -> Path:
    """Return a manifest, in `folder`, of the embedded model as it lies in this checkout."""
    base = ROOT / "data" / "nano-flux"
    files = tuple(
        WeightFile(path.relative_to(base).as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(base.rglob("*"))
        if path.is_file()
    )
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    write_manifest(manifest, Manifest(str(base), None, None, files))
    return manifest


def subject_params(subject: Subject) -> Params:
    """Return params.yaml with the subject's trigger and prompts."""
    params = load_params(ROOT / "params.yaml")
    captioning = params.caption.model_copy(update={"trigger": subject.trigger})
    encoding = params.encode.model_copy(update={"sample_prompts": subject.prompts.develop[:2]})
    changes = {"caption": captioning, "encode": encoding, "prompts": subject.prompts}
    return params.model_copy(update=changes)


def train_subject(subject: Subject, out: Path) -> Path:
    """Return the subject's LoRA, trained in `out` unless it is there already."""
    folder = out / subject.name
    adapter = folder / "train" / "adapter.safetensors"
    if adapter.is_file():
        return adapter
    params = subject_params(subject)
    weights, pictures = base_manifest(folder), folder / "pictures"
    draw_subject(subject, pictures)
    sources = {"images": pictures / "train", "validation": pictures / "validation"}
    prepare(params.prepare, **sources, out=folder / "prepare")
    captioned = {"captions": sources["images"], "validation_captions": sources["validation"]}
    caption(
        params.caption,
        params.model.text_tokens,
        weights=weights,
        images=folder / "prepare",
        **captioned,
        captioner=ROOT / "data" / "nano-flux" / "captioner",
        out=folder / "caption",
    )
    sampling = params.sampling
    encode(
        params.encode,
        params.model,
        params.prompts.without_trigger,
        sampling.steps,
        sampling.guidance,
        sampling.batch,
        weights=weights,
        images=folder / "prepare",
        captions=folder / "caption" / "captions.csv",
        out=folder / "encode",
    )
    train(
        params.train,
        params.model,
        params.sampling,
        weights=weights,
        encoded=folder / "encode",
        out=folder / "train",
    )
    return adapter


def main() -> None:
    """Train both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    prepare_process()
    for subject in SUBJECTS:
        logging.getLogger(__name__).info("%s", train_subject(subject, arguments.out))


if __name__ == "__main__":
    main()
