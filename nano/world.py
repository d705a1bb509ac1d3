"""The drawn world: what can be in a picture, and the sentence that says it.

A picture shows one object on one background. The sentence grammar is

    a SIZE COLOUR SHAPE POSITION, KIND BACKGROUND background

for example "a small red circle on the left, striped blue background". A tenth of all
combinations, chosen by a stable hash of the sentence, is held out: no training stage sees them.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SHAPES: Final = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
SIZES: Final = ("small", "medium", "large")
POSITIONS: Final = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
KINDS: Final = ("plain", "striped", "checkered", "dotted")
PALETTE: Final[dict[str, tuple[int, int, int]]] = {
    "red": (222, 40, 40),
    "orange": (246, 138, 24),
    "yellow": (250, 222, 50),
    "green": (40, 160, 64),
    "cyan": (70, 206, 224),
    "blue": (40, 76, 208),
    "purple": (128, 52, 178),
    "pink": (248, 146, 198),
    "white": (246, 246, 246),
    "black": (30, 30, 36),
}
COLOURS: Final = tuple(PALETTE)

_HELD_OUT_ONE_IN: Final = 10
_SENTENCE: Final = re.compile(
    rf"^a (?P<size>{'|'.join(SIZES)}) (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})"
    rf" (?P<position>{'|'.join(POSITIONS)}),"
    rf" (?P<kind>{'|'.join(KINDS)}) (?P<background>{'|'.join(COLOURS)}) background$"
)


@dataclass(frozen=True, order=True)
class Scene:
    """One combination of the six attributes; the object's colour differs from the background's."""

    shape: str
    colour: str
    size: str
    position: str
    kind: str
    background: str

    @property
    def caption(self) -> str:
        """The sentence of this scene in the world's grammar."""
        return (
            f"a {self.size} {self.colour} {self.shape} {self.position},"
            f" {self.kind} {self.background} background"
        )

    @property
    def held_out(self) -> bool:
        """Whether no training stage may see this scene: the same answer on every machine."""
        digest = hashlib.sha256(self.caption.encode()).digest()
        return int.from_bytes(digest[:8], "big") % _HELD_OUT_ONE_IN == 0


# What the judge reads, and the values each attribute can take, in the order of the class numbers.
ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
    "position": POSITIONS,
    "kind": KINDS,
    "background": COLOURS,
}


def all_scenes() -> Iterator[Scene]:
    """Every scene of the world in a fixed order: 43,200 of them."""
    for values in itertools.product(*ATTRIBUTES.values()):
        scene = Scene(*values)
        if scene.colour != scene.background:
            yield scene


def parse_caption(caption: str) -> Scene:
    """The scene that a sentence of the grammar describes.

    Raises:
        ValueError: if the sentence is not in the grammar.
    """
    match = _SENTENCE.match(caption)
    if match is None:
        raise ValueError(
            f"not a sentence of the drawn world: {caption!r}; expected"
            " 'a SIZE COLOUR SHAPE POSITION, KIND BACKGROUND background'"
        )
    return Scene(**match.groupdict())


def class_numbers(scene: Scene) -> tuple[int, ...]:
    """The place of each attribute's value in `ATTRIBUTES`, in the order of its keys."""
    return tuple(values.index(getattr(scene, name)) for name, values in ATTRIBUTES.items())
