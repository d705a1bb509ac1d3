"""What training reads in a caption: where the trigger is, and whether its picture has a side."""

from __future__ import annotations

import re
from typing import Final

_SIDED: Final = re.compile(
    r"(?<!\w)(?:left|right|leftmost|rightmost|clockwise|anticlockwise|counterclockwise|text|"
    r"letters?|lettering|words?|writing|written|inscriptions?|signs?|logos?|labels?|numbers?|"
    r"digits?)(?!\w)",
    re.IGNORECASE,
)
"""Words that a mirrored picture makes untrue, or whose lettering it makes unreadable."""


def sided_words(caption: str) -> list[str]:
    """Return the words of the caption that forbid mirroring its picture, in order, lower case."""
    return [match[0].lower() for match in _SIDED.finditer(caption)]


def without_trigger(caption: str, trigger: str, stand_in: str) -> str:
    """Return a caption that begins with the trigger without it, or with `stand_in` in its place.

    A caption that is nothing but the trigger becomes `stand_in`, which may be empty. With an empty
    trigger (regularisation pictures) the caption stays as it is.
    """
    if not trigger:
        return caption
    rest = caption.removeprefix(trigger)
    return f"{stand_in}{rest}" if stand_in else rest.lstrip(" ,.:;")
