"""The bad pictures that people have, each with its verdict, in one folder and one run."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from PIL import Image, ImageCms

from stages.contracts.errors import DatasetError
from stages.contracts.tables import MANIFEST, read_table
from stages.prepare import prepare
from tests.imaging.drawings import bomb, scenery
from tests.stages.test_prepare import contents, params

ACCEPTED: Final = ""
DAMAGED: Final = "damaged"
Maker = Callable[[Path], object]
KINDS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")


def data(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """Return a picture as a file of a format."""
    buffer = io.BytesIO()
    (image or scenery(96, 80)).save(buffer, kind, **options)
    return buffer.getvalue()


def cut(kind: str, quarters: int) -> Maker:
    """Return a maker of a file of which only some quarters arrived."""
    whole = data(kind)
    return lambda path: path.write_bytes(whole[: len(whole) * quarters // 4])


def whole(kind: str, image: Image.Image | None = None, **options: object) -> Maker:
    """Return a maker of a sound file."""
    return lambda path: path.write_bytes(data(kind, image, **options))


def turned(orientation: int) -> Maker:
    """Return a maker of a JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return whole("JPEG", scenery(96, 80, orientation), exif=exif)


def flipped(path: Path) -> None:
    """Write a PNG in which one bit is wrong."""
    content = bytearray(data("PNG"))
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(target: str) -> Maker:
    """Return a maker of a symbolic link."""
    return lambda path: path.symlink_to(target)


def nested(path: Path) -> None:
    """Make a folder in a concept's folder."""
    (path / "inner").mkdir(parents=True)


def animation(path: Path) -> None:
    """Write a GIF of three frames."""
    frames = [scenery(96, 80, seed) for seed in range(3)]
    path.write_bytes(data("GIF", frames[0], save_all=True, append_images=frames[1:]))


SRGB: Final = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CLEAR: Final = Image.fromarray(
    np.dstack([np.asarray(scenery(96, 80)), np.full((80, 96), 90, np.uint8)])
)
DEEP: Final = Image.fromarray(np.asarray(scenery(96, 80).convert("L"), np.uint16) * 257)

CORPUS: Final[dict[str, tuple[Maker, str]]] = {
    # what came only in part: at every quarter, in every format
    **{
        f"cut-{kind}-{quarters}.{kind.lower()}": (cut(kind, quarters), DAMAGED)
        for kind in KINDS
        for quarters in (1, 2, 3)
    },
    "empty.png": (lambda path: path.touch(), "zero bytes"),
    "flipped.png": (flipped, DAMAGED),
    # other things under a picture's name
    "page.png": (lambda path: path.write_text("<html>404</html>"), "not a picture despite"),
    "letter.jpg": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0\n"), "not a picture despite"),
    "zeros.webp": (lambda path: path.write_bytes(bytes(999)), "not a picture despite"),
    "icon.png": (whole("ICO", scenery(64, 64)), "not a picture despite"),
    "layers.psd": (lambda path: path.write_bytes(b"8BPS"), "not a picture format that is read"),
    "nothing": (lambda path: path.touch(), "not a picture format that is read (no extension)"),
    "film.mp4": (lambda path: path.write_bytes(b"ftyp"), "not a picture format that is read"),
    # sizes
    "bomb.png": (lambda path: bomb(path, 60_000, 60_000), "more than prepare.max_pixels"),
    "bomb-thin.png": (lambda path: bomb(path, 2_000_000, 2), "more than prepare.max_pixels"),
    "small.png": (whole("PNG", scenery(31, 31)), "under prepare.min_side_px"),
    "dot.png": (whole("PNG", Image.new("RGB", (1, 1))), "under prepare.min_side_px"),
    "strip.png": (whole("PNG", scenery(160, 40)), "further apart than prepare.max_aspect"),
    "float.tiff": (whole("TIFF", Image.new("F", (64, 64), 0.5)), "pixel format F"),
    "whole.tiff": (whole("TIFF", Image.new("I", (64, 64), 9)), "pixel format I"),
    # names, links and special files
    "pair.png": (whole("PNG"), "shares its name with others"),
    "pair.jpg": (whole("JPEG"), "shares its name with others"),
    "Case.png": (whole("PNG"), "shares its name with others"),
    "cASE.jpg": (whole("JPEG"), "shares its name with others"),
    "two\nlines.png": (whole("PNG"), "file name cannot be used"),
    "back\\slash.png": (whole("PNG"), "file name cannot be used"),
    os.fsdecode(b"latin\xfc.png"): (whole("PNG"), "file name cannot be used"),
    "gone.png": (link("nowhere.png"), "link to a file that is not there"),
    "round.png": (link("round.png"), "link to a file that is not there"),
    "outside.png": (link("/etc/hostname"), "link that leaves the folder"),
    "pipe.png": (lambda path: os.mkfifo(path), "not a regular file"),
    "concept": (nested, "sub-folder of a sub-folder"),
    # unusual, and good
    **{f"turned-{turn}.jpg": (turned(turn), ACCEPTED) for turn in range(1, 9)},
    "turned-9.jpg": (turned(9), ACCEPTED),
    **{f"whole-{kind}.{kind.lower()}": (whole(kind), ACCEPTED) for kind in KINDS},
    "cmyk.jpg": (whole("JPEG", scenery(96, 80).convert("CMYK")), ACCEPTED),
    "grey.png": (whole("PNG", scenery(96, 80).convert("L")), ACCEPTED),
    "black and white.png": (whole("PNG", scenery(96, 80).convert("1")), ACCEPTED),
    "palette.png": (whole("PNG", scenery(96, 80).convert("P")), ACCEPTED),
    "sixteen.png": (whole("PNG", DEEP), ACCEPTED),
    "sixteen.deep.tiff": (whole("TIFF", DEEP), ACCEPTED),
    "clear.png": (whole("PNG", CLEAR), ACCEPTED),
    "clear.lossy.webp": (whole("WEBP", CLEAR), ACCEPTED),
    "profile.jpg": (whole("JPEG", icc_profile=SRGB), ACCEPTED),
    "profile-broken.jpg": (whole("JPEG", icc_profile=b"no profile" * 20), ACCEPTED),
    "profile-foreign.jpg": (
        whole("JPEG", scenery(96, 80).convert("L"), icc_profile=SRGB),
        ACCEPTED,
    ),
    "progressive.jpg": (whole("JPEG", progressive=True), ACCEPTED),
    "animated.gif": (animation, ACCEPTED),
    "really-a-jpeg.png": (whole("JPEG"), ACCEPTED),
    "LOUD.PNG": (whole("PNG"), ACCEPTED),
    "with  spaces .png": (whole("PNG"), ACCEPTED),
    'Grün & ß, "quoted" 100%.png': (whole("PNG"), ACCEPTED),
    "robot 🤖.png": (whole("PNG"), ACCEPTED),
    "-rf.png": (whole("PNG"), ACCEPTED),
    "inside.png": (link("LOUD.PNG"), ACCEPTED),
}


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Path]:
    """The corpus as a training folder, beside a sound validation folder."""
    images = tmp_path / "train"
    images.mkdir()
    for name, (make, _) in CORPUS.items():
        make(images / name)
    (tmp_path / "validation").mkdir()
    scenery(80, 80, 99).save(tmp_path / "validation" / "held-out.png")
    return {"images": images, "validation": tmp_path / "validation", "out": tmp_path / "out"}


def test_the_corpus_is_large() -> None:
    """The loop below runs over as many cases as it claims."""
    bad = [name for name, (_, verdict) in CORPUS.items() if verdict]
    assert len(bad) == 52
    assert len(CORPUS) == 89


def test_each_file_gets_its_verdict(corpus: dict[str, Path]) -> None:
    """Skipped with the right reason or accepted; every file of the folder has its row."""
    prepare(params(on_invalid="skip"), **corpus)
    table = read_table(MANIFEST, corpus["out"] / "manifest.csv")
    rows = table[table["split"] == "train"].set_index("source")
    written = {"two\nlines.png": "two\\x0alines.png", "concept": "concept/inner"}
    written[os.fsdecode(b"latin\xfc.png")] = "latin\\xfc.png"
    assert len(rows) == len(CORPUS)
    wrong = {}
    for name, (_, verdict) in CORPUS.items():
        row = rows.loc[written.get(name, name)]
        expected = "skipped" if verdict else "accepted"
        if row["status"] != expected or verdict not in row["reason"]:
            wrong[name] = (row["status"], row["reason"])
    assert wrong == {}


def test_all_refusals_are_one_message(corpus: dict[str, Path]) -> None:
    """With `fail` nothing is written, nothing is touched, and every bad file is in the message."""
    before = sorted(path.name for path in corpus["images"].iterdir())
    with pytest.raises(DatasetError) as caught:
        prepare(params(), **corpus)
    named = {problem.where for problem in caught.value.problems}
    bad = {name for name, (_, verdict) in CORPUS.items() if verdict}
    # Files that share a name share one problem, which names them all.
    bad -= {"pair.png", "cASE.jpg"}
    odd = {name for name in bad if "\n" in name or "\\" in name or "\udcfc" in name}
    expected = {str(corpus["images"] / name) for name in bad - odd - {"concept"}}
    expected |= {ascii(str(corpus["images"] / name)) for name in odd}
    expected |= {str(corpus["images"] / "concept" / "inner")}
    assert len(odd) == 3
    assert named == expected
    assert not corpus["out"].exists()
    assert sorted(path.name for path in corpus["images"].iterdir()) == before


def test_the_corpus_comes_out_the_same_with_one_and_four_workers(
    corpus: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes depend on the files alone."""
    results = []
    for workers in ("1", "4"):
        monkeypatch.setenv("BLOCKLENS_THREADS", workers)
        prepare(params(on_invalid="skip"), **corpus)
        results.append(contents(corpus["out"]))
    assert results[0] == results[1]
    masks = [name for name in results[0] if name.startswith("images/masks/")]
    assert len(masks) == 2  # of the transparent ones
    assert len(results[0]) == 37 + len(masks) + 1 + 3
