"""`prepare` takes every good picture, refuses all bad ones at once, and repeats itself exactly."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.contracts.errors import DatasetError
from stages.contracts.params import PrepareParams
from stages.contracts.tables import MANIFEST, read_table
from stages.prepare import prepare
from stages.runtime.files import sha256_file
from tests.imaging.drawings import bomb, scenery


def params(**changes: Any) -> PrepareParams:
    """Return settings for small pictures."""
    values = {
        "images": "unused",
        "validation_images": "unused too",
        "size_px": 64,
        "fit": "crop",
        "background": [255, 255, 255],
        "min_side_px": 32,
        "max_pixels": 1_000_000,
        "max_aspect": 3.0,
        "near_duplicate_bits": 4,
        "validation_share": 0.0,
        "concepts": [],
        "kind": "character",
        "on_invalid": "fail",
        "focus": "centre",
        "similar_bits": 12,
        "low_variety_share": 0.5,
        "blur_below": 30.0,
        "black_below": 40,
        "uniform_below": 6.0,
        "upscale_above": 1.5,
        "bars_above": 0.02,
    }
    return PrepareParams.model_validate({**values, **changes})


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Four training pictures of different kinds, one validation picture, and an output folder."""
    images, validation = tmp_path / "train", tmp_path / "validation"
    images.mkdir()
    validation.mkdir()
    scenery(120, 90, 1).save(images / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    scenery(90, 130, 2).save(images / "b Grün 🤖.jpg", exif=exif, quality=95)
    scenery(64, 64, 3).convert("L").save(images / "c.webp", lossless=True)
    scenery(80, 80, 4).convert("CMYK").save(images / "d.tif")
    (images / "a.txt").write_text("tok, a picture")
    scenery(100, 100, 5).save(validation / "held-out.png")
    return {"images": images, "validation": validation, "out": tmp_path / "prepare"}


def contents(folder: Path) -> dict[str, str]:
    """Return each file of a folder and its hash."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_picture_becomes_a_row_and_a_square(folders: dict[str, Path]) -> None:
    """Manifest, files and metrics agree with each other and with what went in."""
    prepare(params(), **folders)
    manifest = read_table(MANIFEST, folders["out"] / "manifest.csv").set_index("image")
    assert list(manifest.index) == ["a", "b Grün 🤖", "c", "d", "held-out"]
    assert manifest["split"].tolist() == ["train"] * 4 + ["validation"]
    rotated = manifest.loc["b Grün 🤖"]
    assert rotated["exif_orientation"] == 6
    assert (rotated["original_width_px"], rotated["original_height_px"]) == (130, 90)
    assert rotated["source"] == "b Grün 🤖.jpg"
    assert rotated["source_sha256"] == sha256_file(folders["images"] / "b Grün 🤖.jpg")
    for row in manifest.itertuples():
        path = folders["out"] / "images" / str(row.file)
        assert sha256_file(path) == row.sha256
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((64, 64), "RGB", "PNG")
    assert json.loads((folders["out"] / "metrics.json").read_text()) == {
        "images_total": 5,
        "images_accepted": 5,
        "images_rejected": 0,
        "images_masked": 0,
        "images_upscaled": 0,
        "images_train": 4,
        "images_validation": 1,
        "images_regularisation": 0,
        "exact_duplicates": 0,
        "images_blurred": 0,
        "images_near_black": 0,
        "images_near_uniform": 0,
        "images_strongly_upscaled": 0,
        "images_with_bars": 0,
        "near_duplicates": 0,
        "outside_kind": 1,
        "low_variety": 0,
    }


def test_pictures_look_as_viewers_show_them(folders: dict[str, Path]) -> None:
    """Grey of the right size comes through to the bit; a rotated picture is upright."""
    prepare(params(), **folders)
    grey = np.asarray(Image.open(folders["out"] / "images" / "c.png"))
    expected = np.asarray(scenery(64, 64, 3).convert("L").convert("RGB"))
    assert np.array_equal(grey, expected)
    turned = np.asarray(Image.open(folders["out"] / "images" / "b Grün 🤖.png"), float)
    upright = scenery(90, 130, 2).transpose(Image.Transpose.ROTATE_270)
    square = upright.crop((20, 0, 110, 90)).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.abs(turned - np.asarray(square, float)).mean() < 6, (
        "JPEG and its coarser colours apart, the same picture"
    )


def test_same_bytes_with_any_number_of_workers_and_any_order(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second machine, with other cores and another file system, writes the same files."""
    monkeypatch.setenv("BLOCKLENS_THREADS", "1")
    prepare(params(), **folders)
    first = contents(folders["out"])
    assert len(first) == 8
    monkeypatch.setenv("BLOCKLENS_THREADS", "4")
    iterate = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(iterate(self), reverse=True))
    prepare(params(), **{**folders, "out": tmp_path / "again"})
    assert contents(tmp_path / "again") == first


def test_adding_a_picture_changes_no_other(folders: dict[str, Path]) -> None:
    """A picture's output depends on that picture alone."""
    prepare(params(), **folders)
    before = contents(folders["out"] / "images")
    scenery(70, 70, 9).save(folders["images"] / "0.png")
    prepare(params(), **folders)
    after = contents(folders["out"] / "images")
    assert set(after) - set(before) == {"0.png"}
    assert before.items() <= after.items()


def test_everything_wrong_is_said_at_once_and_old_output_stays(folders: dict[str, Path]) -> None:
    """A person corrects all pictures in one go, and loses nothing meanwhile."""
    prepare(params(), **folders)
    before = contents(folders["out"])
    images = folders["images"]
    good = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(good[: len(good) // 2])
    (images / "empty.jpg").touch()
    (images / "page.png").write_text("<html>")
    bomb(images / "bomb.png", 50_000, 50_000)
    scenery(20, 20).save(images / "small.png")
    scenery(40, 200).save(images / "strip.png")
    scenery(64, 64).save(images / "c.jpg")
    scenery(64, 64).save(images / "held-out.jpg")
    (images / "folder" / "folder").mkdir(parents=True)
    with pytest.raises(DatasetError) as caught:
        prepare(params(), **folders)
    named = {Path(problem.where).name for problem in caught.value.problems}
    assert named == {
        "bomb.png", "c.jpg", "cut.png", "empty.jpg", "folder", "held-out.png", "page.png",
        "small.png", "strip.png",
    }  # fmt: skip
    assert "9 problems" in str(caught.value)
    assert contents(folders["out"]) == before
    assert [path.name for path in folders["out"].parent.glob(".prepare*")] == []


def test_empty_and_missing_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Training on nothing, or measuring on nothing, is refused before any work."""
    (tmp_path / "nothing").mkdir()
    chosen = {"images": tmp_path / "nothing", "validation": tmp_path / "nowhere"}
    with pytest.raises(DatasetError, match="holds no pictures") as caught:
        prepare(params(), **{**folders, **chosen})
    assert "nowhere: does not exist" in str(caught.value)


def test_near_duplicates_are_counted_and_named(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Copies make a LoRA learn one picture by heart; across the split they fake the validation."""
    scenery(120, 90, 1).resize((100, 75)).save(folders["images"] / "a copy.png")
    scenery(64, 64, 3).convert("L").save(folders["validation"] / "leak.png")
    with caplog.at_level(logging.WARNING):
        prepare(params(), **folders)
    manifest = read_table(MANIFEST, folders["out"] / "manifest.csv").set_index("image")
    twins = manifest["near_duplicate_of"]
    assert twins[twins != ""].to_dict() == {"a copy": "a", "leak": "c"}
    assert json.loads((folders["out"] / "metrics.json").read_text())["near_duplicates"] == 2
    assert "near duplicates: a.png and a copy.png" in caplog.text
    assert "one of them for validation only: c.webp and leak.png" in caplog.text


def test_pad_keeps_the_whole_picture_on_the_background(folders: dict[str, Path]) -> None:
    """With `pad` nothing is cut off and the bars have the stated colour."""
    prepare(params(fit="pad", background=[0, 128, 0]), **folders)
    pixels = np.asarray(Image.open(folders["out"] / "images" / "a.png"))
    assert (pixels[:8] == (0, 128, 0)).all()
    assert (pixels[56:] == (0, 128, 0)).all()


def test_scaling_up_is_counted_and_said(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A small picture blown up is soft; it may be used, but not in silence."""
    with caplog.at_level(logging.WARNING):
        prepare(params(size_px=128), **folders)
    assert json.loads((folders["out"] / "metrics.json").read_text())["images_upscaled"] == 5
    assert "a.png: scaled up 1.42 times from 120x90 pixels" in caplog.text


def test_command_line_fails_with_one_message(folders: dict[str, Path], tmp_path: Path) -> None:
    """As dvc.yaml runs it: exit code 1, the file and the remedy, no traceback."""
    (folders["images"] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    flags = [word for name, path in folders.items() for word in (f"--{name}", str(path))]
    result = subprocess.run(
        [sys.executable, "-m", "stages.prepare", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 1
    assert "broken.png" in result.stderr
    assert "Traceback" not in result.stderr


def transparent(side_px: int) -> Image.Image:
    """Return a picture whose left half is transparent."""
    image = scenery(side_px, side_px, 9).convert("RGBA")
    opacity = np.full((side_px, side_px), 255, np.uint8)
    opacity[:, : side_px // 2] = 0
    image.putalpha(Image.fromarray(opacity))
    return image


@pytest.mark.parametrize("fit", ["crop", "pad", "bucket"])
def test_transparency_is_kept_as_a_mask(folders: dict[str, Path], fit: str) -> None:
    """Beside the picture, in its very geometry, with its hash; padding is outside of it."""
    transparent(128).crop((0, 0, 128, 96)).save(folders["images"] / "cut.png")
    Image.new("RGBA", (64, 64), (9, 9, 9, 255)).save(folders["images"] / "whole.png")
    prepare(params(fit=fit), **folders)
    manifest = read_table(MANIFEST, folders["out"] / "manifest.csv").set_index("image")
    masks = folders["out"] / "images" / "masks"
    assert [path.name for path in masks.iterdir()] == ["cut.png"]
    assert manifest.loc["cut", "mask_sha256"] == sha256_file(masks / "cut.png")
    assert set(manifest.drop(index="cut")["mask_sha256"]) == {""}
    with Image.open(masks / "cut.png") as image:
        assert image.mode == "L"
        assert image.size == (manifest.loc["cut", "width_px"], manifest.loc["cut", "height_px"])
        opacity = np.asarray(image)
    width = opacity.shape[1]
    rows = slice(10, -10) if fit == "pad" else slice(None)
    assert opacity[rows, : width // 2 - 4].max() == 0
    assert opacity[rows, width // 2 + 4 :].min() == 255
    if fit == "pad":
        assert opacity[:6].max() == 0
    metrics = json.loads((folders["out"] / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images_masked"] == 1


def test_enlargement_stands_in_the_manifest(folders: dict[str, Path]) -> None:
    """Later stages can tell how large a picture really was."""
    scenery(48, 40, 7).save(folders["images"] / "small.png")
    prepare(params(), **folders)
    manifest = read_table(MANIFEST, folders["out"] / "manifest.csv").set_index("image")
    assert manifest.loc["small", "upscale"] == pytest.approx(64 / 40)
    assert manifest.loc["a", "upscale"] == pytest.approx(64 / 90)
