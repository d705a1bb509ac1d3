"""Only whole pictures within the limits come in, and every other file is refused in our words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.imaging.inspection import PictureLimits, PictureRefusedError, read_picture
from tests.imaging.drawings import bomb, scenery

LIMITS = PictureLimits(min_side_px=32, max_pixels=1_000_000, max_aspect=3.0)
ORIENTATION = 0x0112


def refusal(path: Path) -> str:
    """Return why a picture is refused."""
    with pytest.raises(PictureRefusedError) as caught:
        read_picture(path, LIMITS)
    assert caught.value.problem.where == str(path)
    assert caught.value.problem.remedy
    return caught.value.problem.what


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the picture as a file of a format."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"])
def test_every_promised_format_is_read(tmp_path: Path, kind: str) -> None:
    """Each format decodes to the picture that went in, as far as its compression lets it."""
    source = scenery(64, 48)
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(encoded(source, kind))
    picture = read_picture(path, LIMITS)
    assert (picture.width_px, picture.height_px, picture.notes) == (64, 48, ())
    difference = np.asarray(picture.image.convert("RGB"), float) - np.asarray(source, float)
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """A phone's picture stands upright, whichever of the eight ways the camera was held."""
    upright = scenery(60, 40)
    stored = upright
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Pillow's inverse transpose
    if orientation > 1:
        stored = upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "picture.png"
    stored.save(path, exif=exif)
    picture = read_picture(path, LIMITS)
    assert (picture.width_px, picture.height_px) == (60, 40)
    assert picture.exif_orientation == orientation
    assert np.array_equal(np.asarray(picture.image), np.asarray(upright))


def test_impossible_orientation_is_upright(tmp_path: Path) -> None:
    """Viewers ignore an orientation that does not exist, and so do we."""
    exif = Image.Exif()
    exif[ORIENTATION] = 9
    path = tmp_path / "picture.jpg"
    scenery(60, 40).save(path, exif=exif)
    assert read_picture(path, LIMITS).exif_orientation == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_truncated_pictures_are_refused(tmp_path: Path, kind: str, quarters: int) -> None:
    """A download that broke off is not half a picture on grey."""
    data = encoded(scenery(160, 120), kind)
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(data[: len(data) * quarters // 4])
    assert "damaged" in refusal(path)


def test_changed_bytes_in_a_png_are_noticed(tmp_path: Path) -> None:
    """PNG carries check sums: a flipped bit must not become a picture."""
    data = bytearray(encoded(scenery(160, 120), "PNG"))
    data[len(data) // 2] ^= 1
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_empty_files_are_refused(tmp_path: Path) -> None:
    """Zero bytes is what a full disk leaves."""
    path = tmp_path / "picture.png"
    path.touch()
    assert refusal(path) == "zero bytes"


@pytest.mark.parametrize("content", [b"<html>404</html>", b"%!PS-Adobe-3.0\n", b"\x00" * 100])
def test_other_things_named_like_pictures_are_refused(tmp_path: Path, content: bytes) -> None:
    """A web page saved as .png is no picture, and PostScript is never run."""
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert refusal(path).startswith("not a picture despite its name")


def test_wrong_but_known_extension_is_read(tmp_path: Path) -> None:
    """A JPEG named .png is a picture all the same: the content decides."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(scenery(64, 48), "JPEG"))
    assert read_picture(path, LIMITS).width_px == 64


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """A header that promises 60,000 x 60,000 pixels costs nothing, and says the limit."""
    path = tmp_path / "picture.png"
    bomb(path, 60_000, 60_000)
    assert refusal(path) == ("60000x60000 pixels, more than prepare.max_pixels allows (1000000)")


@pytest.mark.parametrize(
    ("size", "what"),
    [
        ((31, 64), "31x64 pixels, shorter side under prepare.min_side_px (32)"),
        ((40, 121), "40x121 pixels, sides further apart than prepare.max_aspect (3)"),
    ],
)
def test_small_and_narrow_pictures_are_refused(
    tmp_path: Path, size: tuple[int, int], what: str
) -> None:
    """What would be blown up or cut to a strip says so before it is trained on."""
    path = tmp_path / "picture.png"
    scenery(*size).save(path)
    assert refusal(path) == what


def test_pixels_without_a_white_are_refused(tmp_path: Path) -> None:
    """Nobody can say which brightness 1.0 is in a float TIFF."""
    path = tmp_path / "picture.tiff"
    Image.new("F", (64, 64), 0.5).save(path)
    assert refusal(path).startswith("pixel format F")


def test_first_frame_of_several_is_used_and_said(tmp_path: Path) -> None:
    """An animation is taken as its first frame, never in silence."""
    frames = [scenery(64, 64, seed) for seed in range(3)]
    path = tmp_path / "picture.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    picture = read_picture(path, LIMITS)
    assert picture.notes == ("several frames or pages, the first is used",)


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without read permission is a message, not a traceback."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "picture.png"
    scenery(64, 64).save(path)
    monkeypatch.setattr(Path, "open", refuse)  # root, who runs CI, may read everything
    assert refusal(path) == "may not be read"
