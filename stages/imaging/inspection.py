"""Is this file a picture that a LoRA can be trained on?

Size and kind are read from its header, before a pixel is decoded; then every pixel is decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pillow_heif
from PIL import ExifTags, Image, UnidentifiedImageError

from stages.contracts.errors import Problem

READ_FORMATS: Final = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow may open these and no others: some of its formats run other programs."""

READ_MODES: Final = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
    | {"I;16", "I;16L", "I;16B", "I;16N"}
)
"""Pillow's pixel formats with 1, 8 or 16 bits per channel; the others have no fixed white."""

_DECODER_ERRORS: Final = (
    OSError,  # among them UnidentifiedImageError and "image file is truncated"
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,  # Pillow's word for a broken header
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on broken files."""

_UPRIGHT: Final = 1
_TRANSPOSES: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.init()  # loads the formats now: the first open may come from several threads at once
pillow_heif.register_heif_opener()
# The limit is ours, from params, checked on the header. Pillow's own would only add a warning.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class PictureLimits:
    """What a picture must keep to be accepted."""

    min_side_px: int
    max_pixels: int
    max_aspect: float


@dataclass(frozen=True)
class Picture:
    """A decoded, upright picture as the file has it (mode, profile), and what its file said.

    `width_px` and `height_px` are those of the upright picture, `exif_orientation` is 1-8, and
    `notes` says what a person should know of how it was read.
    """

    image: Image.Image
    width_px: int
    height_px: int
    exif_orientation: int
    notes: tuple[str, ...]


class PictureRefusedError(ValueError):
    """One picture that is not accepted; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        """Keep the problem."""
        self.problem = problem
        super().__init__(str(problem))


def read_picture(path: Path, limits: PictureLimits) -> Picture:
    """Return the decoded and upright picture; of an animation or a page stack, the first frame.

    Raises:
        PictureRefusedError: the file is empty, unreadable, truncated, not a picture, or outside
            the limits.
    """
    with _refusing(path), path.open("rb") as file:
        if path.stat().st_size == 0:
            raise _refused(path, "zero bytes", "Copy the picture again.")
        image = Image.open(file, formats=READ_FORMATS)
        _check_header(path, image, limits)
        if image.format == "PNG":
            _check_sums(path)
        notes = _frame_notes(image)
        image.load()
        orientation = _orientation(image)
        upright = image if orientation == _UPRIGHT else _transposed(image, orientation)
        return Picture(upright, upright.width, upright.height, orientation, notes)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one refusal of `path`."""
    try:
        yield
    except PictureRefusedError:
        raise
    except PermissionError as error:
        raise _refused(path, "may not be read", "Give yourself the right to read it.") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(READ_FORMATS)
        what = f"not a picture despite its name, or damaged in its header (none of {formats})"
        raise _refused(path, what, "Copy it again, or move it away.") from error
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _refused(path, f"damaged or truncated ({reason})", "Copy it again.") from error


def _refused(path: Path, what: str, remedy: str) -> PictureRefusedError:
    return PictureRefusedError(Problem(str(path), what, remedy))


def _check_header(path: Path, image: Image.Image, limits: PictureLimits) -> None:
    width, height = image.size
    size = f"{width}x{height} pixels"
    shorter, longer = min(width, height), max(width, height)
    if width * height > limits.max_pixels:
        what = f"{size}, more than prepare.max_pixels allows ({limits.max_pixels})"
        raise _refused(path, what, "Scale it down, or raise the limit if you trust the file.")
    if shorter < limits.min_side_px:
        what = f"{size}, shorter side under prepare.min_side_px ({limits.min_side_px})"
        raise _refused(path, what, "Use a larger version, or lower the limit.")
    if longer > limits.max_aspect * shorter:
        what = f"{size}, sides further apart than prepare.max_aspect ({limits.max_aspect:g})"
        raise _refused(path, what, "Crop it, or raise the limit.")
    if image.mode not in READ_MODES:
        what = f"pixel format {image.mode} has no agreed range of brightness"
        raise _refused(path, what, "Save it with 8 or 16 bits per channel.")


def _check_sums(path: Path) -> None:
    """Check a PNG's check sums, which decoding alone does not look at."""
    with Image.open(path, formats=("PNG",)) as image:
        image.verify()


def _frame_notes(image: Image.Image) -> tuple[str, ...]:
    # Phones append thumbnails and depth maps to a JPEG (MPO): not what a person calls frames.
    several = image.format != "MPO" and getattr(image, "is_animated", False)
    return ("several frames or pages, the first is used",) if several else ()


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1-8; 1 where it is missing or not one of them."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except _DECODER_ERRORS:
        # A broken EXIF block spoils no pixel; viewers show such a picture as it lies.
        return _UPRIGHT
    return value if isinstance(value, int) and value in _TRANSPOSES else _UPRIGHT


def _transposed(image: Image.Image, orientation: int) -> Image.Image:
    upright = image.transpose(_TRANSPOSES[orientation])
    upright.info = image.info
    return upright
