"""Whatever a file's pixels are, they come out as the sRGB colours that a viewer shows."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from stages.imaging.colour import plain_mode, to_srgb
from tests.imaging.drawings import scenery

WHITE = (255, 255, 255)


def srgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Return the picture's sRGB pixels."""
    converted, notes = to_srgb(plain_mode(image), background)
    assert converted.mode == "RGB"
    assert notes == ()
    return np.asarray(converted)


def with_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Return the picture with an embedded profile, as it is after reading a file."""
    image.info["icc_profile"] = profile
    return image


def test_plain_rgb_is_untouched() -> None:
    """The common case costs no rounding."""
    image = scenery(32, 32)
    assert np.array_equal(srgb(image), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_pixel_formats_become_rgb(mode: str) -> None:
    """Each format gives what Pillow's own conversion gives."""
    image = scenery(32, 32).convert(mode)
    assert np.array_equal(srgb(image), np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    """Pillow's own conversion cuts 16-bit grey off at 255: everything white."""
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    grey = srgb(Image.fromarray(values))[0, :, 0]
    assert grey.tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_shows_the_background(mode: str) -> None:
    """Transparent pixels are not black or whatever lies under them."""
    image = Image.new("RGBA", (4, 4), (10, 10, 10, 255))
    image.putpixel((0, 0), (10, 10, 10, 0))
    pixels = srgb(image.convert(mode), (1, 2, 3))
    assert pixels[0, 0].tolist() == [1, 2, 3]
    assert pixels[1, 1].tolist() == [10, 10, 10]


def test_half_transparency_is_mixed() -> None:
    """Alpha 128 is half the picture and half the background."""
    pixels = srgb(Image.new("RGBA", (2, 2), (200, 0, 0, 128)), (0, 0, 100))
    assert pixels[0, 0].tolist() == [100, 0, 50]


def test_palette_transparency_is_honoured() -> None:
    """A GIF's transparent colour is transparent."""
    image = Image.new("P", (2, 2), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    image.info["transparency"] = 0
    pixels = srgb(image, (9, 9, 9))
    assert pixels[0, 0].tolist() == [9, 9, 9]
    assert pixels[1, 1].tolist() == [0, 255, 0]


def test_embedded_profile_is_followed() -> None:
    """A camera's wide colours are converted to sRGB, not relabelled."""
    image = with_profile(scenery(16, 16), wide_gamut_profile())
    converted = srgb(image).astype(int)
    plain = np.asarray(image).astype(int)
    assert np.abs(converted - plain).max() > 10
    grey = with_profile(Image.new("RGB", (4, 4), (128, 128, 128)), wide_gamut_profile())
    assert np.ptp(srgb(grey)[0, 0]) <= 1, "grey stays grey in every RGB space"


def test_srgb_profile_changes_nothing() -> None:
    """Most files carry sRGB's own profile."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = scenery(32, 32)
    expected = np.asarray(image).astype(int)
    assert np.abs(srgb(with_profile(image, profile)) - expected).max() <= 1


@pytest.mark.parametrize(
    ("image", "profile", "note"),
    [
        (scenery(8, 8), b"not a profile", "broken colour profile, ignored"),
        (
            scenery(8, 8).convert("L"),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
            "colour profile for RGB pixels on L pixels, ignored",
        ),
    ],
)
def test_useless_profiles_are_ignored_and_noted(
    image: Image.Image, profile: bytes, note: str
) -> None:
    """A viewer shows such a picture without its profile; so do we, and we say it."""
    converted, notes = to_srgb(plain_mode(with_profile(image, profile)), WHITE)
    assert notes == (note,)
    assert np.array_equal(np.asarray(converted), np.asarray(image.convert("RGB")))


def wide_gamut_profile() -> bytes:
    """Return sRGB's profile with the primaries of Adobe RGB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    entries = [data[132 + 12 * i : 144 + 12 * i] for i in range(count)]
    tags = {bytes(entry[:4]): int.from_bytes(entry[4:8], "big") for entry in entries}
    for tag, (x, y, z) in {
        b"rXYZ": (0.6097, 0.3111, 0.0195),
        b"gXYZ": (0.2053, 0.6257, 0.0609),
        b"bXYZ": (0.1492, 0.0632, 0.7446),
    }.items():  # Adobe RGB (1998), section 4.3.6.1, D50-adapted primaries
        values = b"".join(round(v * 65536).to_bytes(4, "big") for v in (x, y, z))
        data[tags[tag] + 8 : tags[tag] + 20] = values
    return bytes(data)
