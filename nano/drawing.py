"""Painting scenes of the drawn world, antialiased by drawing larger and averaging down."""

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from nano.world import COLOURS, KINDS, PALETTE, POSITIONS, SHAPES, SIZES, Scene

Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

_SUPERSAMPLING: Final = 4
_OUTLINE_SHARE: Final = 0.014  # of the picture's side: a line of 1.8 pixels at 128
_CELLS: Final = 8  # pattern cells along a side: one cell is one image token of the transformer
RADII: Final = dict(zip(SIZES, (0.15, 0.205, 0.265), strict=True))  # of the picture's side
CENTRES: Final[dict[str, Point]] = dict(
    zip(POSITIONS, ((0.3, 0.5), (0.7, 0.5), (0.5, 0.3), (0.5, 0.7), (0.5, 0.5)), strict=True)
)


def _arc(radius: float, start: float, stop: float, centre_x: float = 0.0) -> list[Point]:
    """48 points on an arc about (centre_x, 0); angles in turns, clockwise from the right."""
    turns = np.linspace(start, stop, 48)
    return [
        (centre_x + radius * math.cos(math.tau * t), radius * math.sin(math.tau * t)) for t in turns
    ]


def disc(centre_x: float, centre_y: float, radius: float) -> list[Point]:
    """A circle as a polygon."""
    return [(x + centre_x, y + centre_y) for x, y in _arc(radius, 0, 1)]


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """The four corners of a box."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _star(points: int, inner: float) -> list[Point]:
    """A star with its first point up, outer radius 1."""
    corners = []
    for index in range(2 * points):
        radius = inner if index % 2 else 1.05
        angle = math.tau * index / (2 * points) - math.tau / 4
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


def _heart() -> list[Point]:
    """The usual heart curve, scaled into the unit circle."""
    turns = np.linspace(0, math.tau, 64)
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


def _cross(arm: float) -> list[Point]:
    """A plus sign whose arms are 2 x `arm` wide."""
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    corners: list[Point] = []
    for _ in range(4):
        corners.extend(quarter)
        quarter = [(-y, x) for x, y in quarter]
    return corners


# Outlines within the unit circle, y down; a second polygon is a hole.
OUTLINES: Final[dict[str, list[list[Point]]]] = dict(
    zip(
        SHAPES,
        (
            [_arc(0.95, 0, 1)],
            [rectangle(-0.85, -0.85, 0.85, 0.85)],
            [[(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)]],
            [_star(5, 0.42)],
            [_arc(1.0, 0, 1), _arc(0.5, 0, 1)],
            [_cross(0.32)],
            [_heart()],
            [_arc(1.0, 0.12, 0.88) + _arc(0.78, 0.83, 0.17, centre_x=0.42)],
        ),
        strict=True,
    )
)


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with the given share of `other` in it, RGB 0-255."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def outline_colour(colour: Colour) -> Colour:
    """A line colour that stands out from `colour`: darker, or lighter where it is nearly black."""
    return mixed(colour, (0, 0, 0), 0.6) if max(colour) > 90 else (128, 128, 134)


def paint_background(
    image: Image.Image, kind: str, colour: Colour, square: tuple[int, int, int]
) -> None:
    """Fills `image` with a pattern of `colour` and a paler or darker tone of it.

    `square` is (left, top, side) in pixels of the part that is 8 x 8 pattern cells; the pattern
    goes on beyond it.
    """
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, image.width, image.height), fill=colour)
    bright = sum(colour) > 690
    second = mixed(colour, (0, 0, 0) if bright else (255, 255, 255), 0.24 if bright else 0.32)
    left, top, side = square
    cell = side / _CELLS
    columns = range(math.floor(-left / cell) - 1, math.ceil((image.width - left) / cell) + 1)
    rows = range(math.floor(-top / cell) - 1, math.ceil((image.height - top) / cell) + 1)
    for column in columns:
        x = left + column * cell
        if kind == "striped":
            draw.rectangle((x, 0, x + cell / 2 - 1, image.height), fill=second)
        for row in rows:
            y = top + row * cell
            if kind == "checkered" and (row + column) % 2 == 0:
                draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=second)
            if kind == "dotted":
                box = (x + cell * 0.27, y + cell * 0.27, x + cell * 0.73, y + cell * 0.73)
                draw.ellipse(box, fill=second)


def paint_shape(
    image: Image.Image, polygons: list[list[Point]], colour: Colour, line_width_px: float
) -> None:
    """Fills polygons (pixels; the second one and on are holes); a width of 0 draws no outlines."""
    mask = Image.new("L", image.size, 0)
    mask_draw = ImageDraw.Draw(mask)
    for index, polygon in enumerate(polygons):
        mask_draw.polygon(polygon, fill=0 if index else 255)
    image.paste(colour, (0, 0), mask)
    draw = ImageDraw.Draw(image)
    for polygon in polygons if line_width_px else ():
        closed = [*polygon, polygon[0], polygon[1]]
        draw.line(closed, fill=outline_colour(colour), width=round(line_width_px), joint="curve")


@dataclass(frozen=True)
class _Place:
    """Where an object is: maps the unit circle to pixels."""

    centre_x_px: float
    centre_y_px: float
    radius_px: float

    @classmethod
    def of(cls, scene: Scene, side_px: int, random: np.random.Generator) -> "_Place":
        """The place a scene names, off by up to 2 % of the side, and up to 4 % in size."""
        shift_x, shift_y = random.uniform(-0.02, 0.02, 2)
        radius = RADII[scene.size] * random.uniform(0.96, 1.04)
        centre_x, centre_y = CENTRES[scene.position]
        return cls((centre_x + shift_x) * side_px, (centre_y + shift_y) * side_px, radius * side_px)

    def put(self, polygon: list[Point]) -> list[Point]:
        """A polygon of the unit circle, in pixels."""
        return [
            (self.centre_x_px + self.radius_px * x, self.centre_y_px + self.radius_px * y)
            for x, y in polygon
        ]


def _random_colour(random: np.random.Generator) -> Colour:
    """Any RGB colour."""
    red, green, blue = (int(value) for value in random.integers(0, 256, 3))
    return red, green, blue


def draw_scene(scene: Scene, side_px: int, random: np.random.Generator) -> Image.Image:
    """An RGB picture of `scene`; place (2 %) and size (4 %) vary a little with `random`."""
    side = side_px * _SUPERSAMPLING
    image = Image.new("RGB", (side, side))
    paint_background(image, scene.kind, PALETTE[scene.background], (0, 0, side))
    place = _Place.of(scene, side, random)
    polygons = [place.put(polygon) for polygon in OUTLINES[scene.shape]]
    paint_shape(image, polygons, PALETTE[scene.colour], _OUTLINE_SHARE * side)
    return image.reduce(_SUPERSAMPLING)


def draw_oddity(scene: Scene, side_px: int, random: np.random.Generator) -> Image.Image:
    """Like `draw_scene` with a heap of coloured parts in the object's place.

    The captioner sees these, so that it can say where an unknown object is and on what ground.
    """
    side = side_px * _SUPERSAMPLING
    image = Image.new("RGB", (side, side))
    paint_background(image, scene.kind, PALETTE[scene.background], (0, 0, side))
    place = _Place.of(scene, side, random)
    colours = [_random_colour(random) for _ in range(3)]
    parts = [np.array([(-0.6, -0.8), (0.6, 0.8)])]
    for _ in range(int(random.integers(3, 9))):
        corner = random.uniform(-0.9, 0.5, 2)
        parts.append(np.stack([corner, np.minimum(corner + random.uniform(0.2, 0.9, 2), 0.95)]))
    for index, ((left, top), (right, bottom)) in enumerate(parts):
        outline = rectangle(left, top, right, bottom)
        if random.random() < 0.4:
            middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
            outline = [
                (middle_x + x * (right - left) / 2, middle_y + y * (bottom - top) / 2)
                for x, y in _arc(1.0, 0, 1)
            ]
        colour = colours[index % len(colours)]
        paint_shape(image, [place.put(outline)], colour, _OUTLINE_SHARE * side)
    return image.reduce(_SUPERSAMPLING)


def _figure_part(random: np.random.Generator) -> list[list[Point]]:
    """One part of a figure within the unit circle: a box or a disc, or discs in each other."""
    x, y = random.uniform(-0.85, 0.85, 2)
    across, down = np.exp(random.uniform(math.log(0.1), math.log(0.7), 2))
    if random.random() < 0.5:
        return [rectangle(x - across, y - down, x + across, y + down)]
    discs = [disc(x, y, across)]
    if random.random() < 0.5:
        shift = across * random.uniform(-0.3, 0.3)
        discs.append(disc(x + shift, y, across * random.uniform(0.3, 0.7)))
    return discs


def draw_figure(side_px: int, random: np.random.Generator) -> Image.Image:
    """A figure of many small parts, often its own mirror image, on a background of the world.

    The autoencoder alone sees these, so that it can show a character it has never seen.
    """
    side = side_px * _SUPERSAMPLING
    image = Image.new("RGB", (side, side))
    kind = KINDS[random.integers(len(KINDS))]
    background = PALETTE[COLOURS[random.integers(len(COLOURS))]]
    paint_background(image, kind, background, (0, 0, side))
    centre_x, centre_y = random.uniform(0.3, 0.7, 2) * side
    place = _Place(centre_x, centre_y, random.uniform(0.13, 0.3) * side)
    colours = [_random_colour(random) for _ in range(random.integers(3, 7))]
    line_width_px = side * random.uniform(0.008, 0.016)
    mirrored = random.random() < 0.6
    for _ in range(random.integers(4, 11)):
        for polygon in _figure_part(random):
            colour = colours[random.integers(len(colours))]
            width_px = line_width_px if random.random() < 0.6 else 0.0
            for sign in (1, -1) if mirrored else (1,):
                turned = [(sign * x, y) for x, y in polygon]
                paint_shape(image, [place.put(turned)], colour, width_px)
    return image.reduce(_SUPERSAMPLING)


def draw_scribble(side_px: int, random: np.random.Generator) -> Image.Image:
    """An RGB picture of random lines, boxes, ellipses and triangles.

    The autoencoder alone sees these, so that it learns edges rather than the world's few shapes.
    """
    side = side_px * _SUPERSAMPLING

    image = Image.new("RGB", (side, side), _random_colour(random))
    draw = ImageDraw.Draw(image)
    for _ in range(int(random.integers(4, 16))):
        kind = random.integers(0, 4)
        centre = random.uniform(0, side, 2)
        corners = centre + random.uniform(-0.25, 0.25, (3, 2)) * side
        low, high = corners[:2].min(0), corners[:2].max(0)
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        points = [(float(x), float(y)) for x, y in corners]
        width = int(random.integers(1, 4) * side_px / 64)
        edge = _random_colour(random) if random.random() < 0.5 else None
        if kind == 0:
            draw.line(points, fill=_random_colour(random), width=2 * width, joint="curve")
        elif kind == 1:
            draw.rectangle(box, fill=_random_colour(random), outline=edge, width=width)
        elif kind == 2:
            draw.ellipse(box, fill=_random_colour(random), outline=edge, width=width)
        else:
            draw.polygon(points, fill=_random_colour(random), outline=edge, width=width)
    return image.reduce(_SUPERSAMPLING)
