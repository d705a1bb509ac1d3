"""The demo subject: pictures as people bring them, with true captions."""

from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parents[2] / "data" / "demo"
ORIENTATION_TAG = 0x0112


def pictures(split: str) -> list[Path]:
    """The pictures of a split, sorted."""
    return sorted(path for path in (FOLDER / split).iterdir() if path.suffix in (".png", ".jpg"))


def test_counts_and_captions() -> None:
    """24 training pictures of which 18 have a caption, 6 validation pictures that all have."""
    training, validation = pictures("train"), pictures("validation")
    assert (len(training), len(validation)) == (24, 6)
    assert sum(path.with_suffix(".txt").exists() for path in training) == 18
    captions = [path.read_text() for path in sorted(FOLDER.rglob("*.txt"))]
    assert len(captions) == len(set(captions)) == 24
    assert all(caption.startswith("tok, a ") for caption in captions)


def test_formats_and_sizes() -> None:
    """PNG and JPEG, 1024 to 1600 pixels, mostly not square, one with EXIF, 6 MB at most."""
    every = pictures("train") + pictures("validation")
    images = [Image.open(path) for path in every]
    assert {path.suffix for path in every} == {".png", ".jpg"}
    assert all(1024 <= side <= 1600 for image in images for side in image.size)
    assert sum(image.width != image.height for image in images) > len(images) / 2
    orientations = [image.getexif().get(ORIENTATION_TAG, 1) for image in images]
    assert sum(value != 1 for value in orientations) == 1
    assert sum(path.stat().st_size for path in every) < 6_000_000
