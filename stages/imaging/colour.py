"""Any pixel format and colour profile to plain sRGB pixels."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, ImageCms

_SIXTEEN_TO_EIGHT_BITS: Final = 257  # 65535 / 255
_ALPHA_MODES: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_PROFILE_SPACES: Final = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "CMYK": "CMYK"}
"""Colour space that a profile must be for, by pixel format (ICC.1:2022, table 19)."""


def plain_mode(image: Image.Image) -> Image.Image:
    """Return the picture as L, RGB, RGBA or CMYK with 8 bits per channel, colours unchanged.

    Palettes are looked up, 16-bit grey is divided by 257 and rounded, transparency of any kind
    becomes an alpha channel, and an alpha channel that is opaque everywhere is dropped.
    """
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        return _with_info(
            Image.fromarray(
                ((deep + _SIXTEEN_TO_EIGHT_BITS // 2) // _SIXTEEN_TO_EIGHT_BITS).astype(np.uint8)
            ),
            image,
        )
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        layered = image if image.mode == "RGBA" else _with_info(image.convert("RGBA"), image)
        opaque = layered.getchannel("A").getextrema() == (255, 255)
        return _with_info(layered.convert("RGB"), image) if opaque else layered
    if image.mode == "1":
        return _with_info(image.convert("L"), image)
    if image.mode in _PROFILE_SPACES:
        return image
    return _with_info(image.convert("RGB"), image)


def to_srgb(image: Image.Image, background: Sequence[int]) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the picture in sRGB (mode RGB, opaque) and notes on what could not be honoured.

    An embedded profile is followed with relative colorimetric intent; one that is broken, or is
    made for another kind of pixels, is ignored as viewers do, and noted.

    Args:
        image: in one of the modes of `plain_mode`.
        background: sRGB colour under transparent pixels, three values 0-255.
    """
    colours, notes = _colours(image)
    if image.mode != "RGBA":
        return colours, notes
    ground = Image.new("RGB", image.size, (background[0], background[1], background[2]))
    ground.paste(colours, mask=image.getchannel("A"))
    return ground, notes


def _colours(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    data = image.info.get("icc_profile")
    opaque = image.convert("RGB") if image.mode == "RGBA" else image
    if not data:
        return opaque.convert("RGB"), ()
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space != _PROFILE_SPACES[image.mode]:
            note = f"colour profile for {space} pixels on {image.mode} pixels, ignored"
            return opaque.convert("RGB"), (note,)
        converted = ImageCms.profileToProfile(
            opaque,
            profile,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return opaque.convert("RGB"), ("broken colour profile, ignored",)
    return (opaque.convert("RGB") if converted is None else converted), ()


def _with_info(image: Image.Image, source: Image.Image) -> Image.Image:
    image.info = {key: value for key, value in source.info.items() if key == "icc_profile"}
    return image
