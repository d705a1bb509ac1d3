"""What every captioner is: a function from pictures to words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """One picture to put into words: RGB of any size, and the concept it belongs to or ""."""

    image: Image.Image
    concept: str


Captioner = Callable[[Iterable[Picture]], Iterator[str]]
"""From pictures to one caption each, in order, none of which depends on the others. An answer may
be empty: what to do about it is the caller's affair."""


def one_by_one(describe: Callable[[Image.Image], str]) -> Captioner:
    """Return the captioner that puts each picture into words by itself, concept apart."""

    def write(pictures: Iterable[Picture]) -> Iterator[str]:
        for picture in pictures:
            yield describe(picture.image)

    return write
