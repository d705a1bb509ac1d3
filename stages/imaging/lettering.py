"""Words on pictures, in the one font that comes with Pillow: the same bytes on every machine."""

from __future__ import annotations

from functools import cache
from typing import Final

from PIL import ImageDraw, ImageFont

Colour = tuple[int, int, int]

ELLIPSIS: Final = "…"


@cache
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Return the font for letters of about `size_px` pixels.

    Raises:
        RuntimeError: Pillow was built without FreeType and has bitmap letters only.
    """
    loaded = ImageFont.load_default(size_px)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow has no FreeType support; install Pillow's own wheel")
    return loaded


def text_width(text: str, size_px: int) -> int:
    """Return how many pixels `text` takes in one line."""
    return round(font(size_px).getlength(text))


def fit_text(text: str, size_px: int, width_px: int) -> str:
    """Return `text`, cut with an ellipsis to `width_px` pixels where it is longer."""
    if text_width(text, size_px) <= width_px:
        return text
    kept = text
    while kept and text_width(kept.rstrip() + ELLIPSIS, size_px) > width_px:
        kept = kept[:-1]
    return kept.rstrip() + ELLIPSIS


def write_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size_px: int, colour: Colour
) -> None:
    """Write one line whose upper left corner is `place`."""
    draw.text(place, text, fill=colour, font=font(size_px))


def write_boxed(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size_px: int) -> None:
    """Write one line in white on a dark box, readable on any picture."""
    padding = max(2, size_px // 4)
    left, top = place
    right = left + text_width(text, size_px) + 2 * padding
    box = (left, top, right, top + size_px + 2 * padding)
    draw.rounded_rectangle(box, radius=padding, fill=(0, 0, 0))
    draw.text((left + padding, top + padding), text, fill=(255, 255, 255), font=font(size_px))
