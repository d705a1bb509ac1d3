"""Stage `demo`: the demo subject, a drawn robot called `tok` that the base model never sees.

Writes `OUT/train` (24 pictures, 18 with a caption) and `OUT/validation` (6 with captions). The
pictures are what people bring: sides of 1024 to 1600 pixels, mostly not square, PNG and JPEG, one
turned by its EXIF orientation. The robot is inside the centred square, to which captions refer.
Parameters: section `demo`.
"""

import argparse
import itertools
import logging
import math
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
    disc,
    paint_background,
    paint_shape,
    rectangle,
)
from nano.parameters import load_section
from nano.world import KINDS, PALETTE, POSITIONS

logger = logging.getLogger(__name__)

TRIGGER: Final = "tok"
_TEAL: Final = (16, 150, 146)
_ORANGE: Final = (255, 126, 36)
_DARK: Final = (44, 52, 64)
_PALE: Final = (250, 250, 240)
_MAGENTA: Final = (226, 44, 120)
_OUTLINED: Final = (_TEAL, _ORANGE)
_BACKGROUNDS: Final = ("blue", "yellow", "white", "purple", "red", "pink", "black", "green")
_SIZES: Final = ("large", "medium", "large", "medium", "small")
_ORIENTATION_TAG: Final = 0x0112
_TURNED_RIGHT: Final = 6  # EXIF: to be shown turned a quarter clockwise
_SUPERSAMPLING: Final = 2
_LINE_SHARE: Final = 0.012  # of the picture's short side


@dataclass(frozen=True)
class DemoParameters:
    """How many pictures of the robot there are."""

    seed: int
    training_pictures: int
    uncaptioned_pictures: int  # of the training pictures, spread evenly
    validation_pictures: int
    turned_picture: int  # the number of the picture with an EXIF orientation
    short_sides_px: list[int]
    long_sides_px: list[int]
    jpeg_quality: int


@dataclass(frozen=True)
class Portrait:
    """One picture of the robot: what its caption says, and how it stands."""

    size: str
    position: str
    kind: str
    background: str
    tilt_degrees: float
    arm_stretched: bool
    gaze: float  # where it looks, -1 is left

    @property
    def caption(self) -> str:
        """The trigger, then the world's grammar with the word robot."""
        return (
            f"{TRIGGER}, a {self.size} robot {self.position},"
            f" {self.kind} {self.background} background"
        )


def _robot_parts(portrait: Portrait) -> list[tuple[list[Point], Colour]]:
    """The robot's parts within the unit circle, from back to front."""
    gaze = 0.09 * portrait.gaze
    arm = (0.98, 0.42) if portrait.arm_stretched else (0.78, 0.52)
    parts = [
        (disc(0.0, -0.84, 0.16), _MAGENTA),
        (rectangle(-0.78, 0.14, -0.4, 0.52), _ORANGE),
        (rectangle(0.4, 0.14, *arm), _ORANGE),
        (rectangle(-0.42, 0.66, -0.08, 0.98), _DARK),
        (rectangle(0.08, 0.66, 0.42, 0.98), _DARK),
        (rectangle(-0.46, 0.06, 0.46, 0.74), _ORANGE),
        (disc(0.0, 0.42, 0.2), _MAGENTA),
        (rectangle(-0.74, -0.72, 0.74, 0.1), _TEAL),
    ]
    for side in (-1, 1):
        parts += [
            (disc(0.34 * side, -0.3, 0.27), _PALE),
            (disc(0.34 * side + gaze, -0.3, 0.13), _DARK),
        ]
    return parts


def _turned(polygon: list[Point], degrees: float) -> list[Point]:
    """The polygon turned clockwise about the origin."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in polygon]


def draw_portrait(portrait: Portrait, width_px: int, height_px: int) -> Image.Image:
    """An RGB picture whose centred square shows what the caption says."""
    width, height = width_px * _SUPERSAMPLING, height_px * _SUPERSAMPLING
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = Image.new("RGB", (width, height))
    paint_background(image, portrait.kind, PALETTE[portrait.background], (left, top, side))
    centre_x, centre_y = CENTRES[portrait.position]
    radius = RADII[portrait.size] * side
    for polygon, colour in _robot_parts(portrait):
        placed = [
            (left + centre_x * side + radius * x, top + centre_y * side + radius * y)
            for x, y in _turned(polygon, portrait.tilt_degrees)
        ]
        paint_shape(image, [placed], colour, _LINE_SHARE * side * (colour in _OUTLINED))
    return image.reduce(_SUPERSAMPLING)


def choose_portraits(parameters: DemoParameters) -> list[Portrait]:
    """Every training portrait, then every validation one; no two captions are the same."""
    random = np.random.default_rng(parameters.seed)
    portraits: dict[str, Portrait] = {}
    count = parameters.training_pictures + parameters.validation_pictures
    for number in itertools.count():
        if len(portraits) == count:
            return list(portraits.values())
        portrait = Portrait(
            size=_SIZES[number % len(_SIZES)],
            position=POSITIONS[(number + number // len(POSITIONS)) % len(POSITIONS)],
            kind=KINDS[int(random.integers(len(KINDS)))],
            background=_BACKGROUNDS[number % len(_BACKGROUNDS)],
            tilt_degrees=float(random.uniform(-6, 6)),
            arm_stretched=bool(random.random() < 0.4),
            gaze=float(random.uniform(-1, 1)),
        )
        portraits.setdefault(portrait.caption, portrait)
    raise AssertionError("itertools.count() does not end")


def _save(image: Image.Image, path: Path, jpeg_quality: int, turned: bool) -> None:
    """Writes a PNG or JPEG by the path's suffix; `turned` stores it on its side with EXIF."""
    if path.suffix == ".png":
        image.save(path, optimize=True)
        return
    exif = Image.Exif()
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[_ORIENTATION_TAG] = _TURNED_RIGHT
    image.save(path, quality=jpeg_quality, subsampling=0, exif=exif)


def write_demo(parameters: DemoParameters, out: Path) -> None:
    """Draws all portraits into `out/train` and `out/validation`."""
    every = parameters.training_pictures // parameters.uncaptioned_pictures
    for number, portrait in enumerate(choose_portraits(parameters)):
        place = number - parameters.training_pictures
        training = place < 0
        folder = out / ("train" if training else "validation")
        folder.mkdir(parents=True, exist_ok=True)
        turned = number == parameters.turned_picture
        suffix = ".jpg" if turned or number % 3 == 1 else ".png"
        name = f"tok-{number:02d}" if training else f"held-out-{place:02d}"
        path = folder / f"{name}{suffix}"
        short = parameters.short_sides_px[number % len(parameters.short_sides_px)]
        long = parameters.long_sides_px[number % len(parameters.long_sides_px)]
        width, height = (short, long) if number % 2 else (long, short)
        picture = draw_portrait(portrait, width, height)
        _save(picture, path, parameters.jpeg_quality, turned)
        if not training or number % every != every - 1:
            path.with_suffix(".txt").write_text(f"{portrait.caption}\n")
    logger.info("the demo subject is in %s", out)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    write_demo(load_section(arguments.params, "demo", DemoParameters), arguments.out)


if __name__ == "__main__":
    main()
