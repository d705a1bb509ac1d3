"""Concepts, splits, buckets, skipped files and warnings of `prepare`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import yaml
from PIL import Image, ImageFilter

from stages.contracts.errors import DatasetError, ParamsError
from stages.contracts.params import PrepareParams, load_params
from stages.contracts.tables import MANIFEST, accepted, read_table
from stages.prepare import prepare
from tests.imaging.drawings import scenery
from tests.stages.test_prepare import contents, folders, params

ROOT = Path(__file__).parents[2]
__all__ = ["folders"]


def metrics(out: Path) -> dict[str, int]:
    """Return metrics.json."""
    content: dict[str, int] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return content


def sharing(**changes: Any) -> PrepareParams:
    """Return params that hold pictures of the one folder out."""
    return params(images="one", validation_images="one", **{"validation_share": 0.3} | changes)


def test_sub_folders_are_concepts(folders: dict[str, Path]) -> None:
    """A listed concept has its repeats and mark; another has none; names stay unique."""
    hats, plain = folders["images"] / "hats", folders["images"] / "class"
    for folder in (hats, plain, folders["images"] / "more"):
        folder.mkdir()
        scenery(80, 80, len(folder.name)).save(folder / "a.png")
    (hats / "a.txt").write_text("a hat")
    listed = [
        {"folder": "hats", "repeats": 3, "regularisation": False},
        {"folder": "class", "repeats": 2, "regularisation": True},
    ]
    prepare(params(concepts=listed), **folders)
    rows = read_table(MANIFEST, folders["out"] / "manifest.csv").set_index("image")
    columns = ["concept", "repeats", "regularisation", "source", "caption_source"]
    found = rows.loc[["hats-a", "class-a", "more-a", "a"], columns].to_numpy().tolist()
    assert found == [
        ["hats", 3, False, "hats/a.png", "txt"],
        ["class", 2, True, "class/a.png", ""],
        ["more", 1, False, "more/a.png", ""],
        ["", 1, False, "a.png", "txt"],
    ]
    assert (folders["out"] / "images" / "hats-a.png").is_file()
    assert metrics(folders["out"])["images_regularisation"] == 1


def test_concept_without_a_folder_is_a_problem(folders: dict[str, Path]) -> None:
    """A misspelt concept would lose its repeats in silence; said with all other problems."""
    (folders["images"] / "empty.png").touch()
    listed = [{"folder": "hat", "repeats": 3, "regularisation": False}]
    with pytest.raises(DatasetError, match="hat: concept without a folder") as caught:
        prepare(params(concepts=listed), **folders)
    assert "empty.png: zero bytes" in str(caught.value)


def test_validation_folder_may_not_be_a_concept(folders: dict[str, Path]) -> None:
    """Its pictures would be trained on and measured with."""
    inside = folders["images"] / "validation"
    shutil.move(folders["validation"], inside)
    with pytest.raises(DatasetError, match="whose sub-folders are concepts"):
        prepare(params(), **{**folders, "validation": inside})


def test_skipped_files_are_listed_and_left_alone(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """With `skip` the good pictures go on, and nobody can overlook or lose the others."""
    images = folders["images"]
    (images / "empty.png").touch()
    (images / "notes.psd").write_bytes(b"8BPS")
    scenery(64, 64).save(images / "c.jpg")
    (images / os.fsdecode(b"latin\xfc.png")).write_bytes(b"x")
    before = contents(images)
    with caplog.at_level(logging.WARNING):
        prepare(params(on_invalid="skip"), **folders)
    table = read_table(MANIFEST, folders["out"] / "manifest.csv")
    lost = table[table["status"] == "skipped"].set_index("source")["reason"].to_dict()
    assert set(lost) == {"empty.png", "notes.psd", "c.jpg", "c.webp", "latin\\xfc.png"}
    assert lost["empty.png"] == "zero bytes"
    assert lost["c.jpg"].startswith("shares its name with others")
    assert sorted(accepted(table)["image"]) == ["a", "b Grün 🤖", "d", "held-out"]
    assert metrics(folders["out"])["images_rejected"] == 5
    assert metrics(folders["out"])["images_total"] == 9
    assert caplog.text.count("skipped: ") == 5
    assert contents(images) == before


def test_a_split_without_pictures_is_refused(folders: dict[str, Path]) -> None:
    """Skipping everything is no dataset."""
    for path in folders["validation"].iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="split validation: no picture"):
        prepare(params(on_invalid="skip"), **folders)


def test_the_share_follows_content_not_company(folders: dict[str, Path], tmp_path: Path) -> None:
    """Adding, renaming and copying pictures moves no other picture between the splits."""
    images = tmp_path / "one"
    images.mkdir()
    for seed in range(12):
        scenery(80, 80, seed).save(images / f"{seed:02d}.png")
    places = {"images": images, "validation": images, "out": folders["out"]}
    prepare(sharing(), **places)
    first = read_table(MANIFEST, folders["out"] / "manifest.csv")
    splits = first.set_index("source_sha256")["split"].to_dict()
    assert set(splits.values()) == {"train", "validation"}
    for seed in range(12, 24):
        scenery(80, 80, seed).save(images / f"0-{seed}.png")
    shutil.copyfile(images / "00.png", images / "copy of 00.png")
    (images / "01.png").rename(images / "renamed.png")
    prepare(sharing(), **places)
    again = read_table(MANIFEST, folders["out"] / "manifest.csv")
    assert len(again) == 25
    for row in again.itertuples():
        assert row.split == splits.get(str(row.source_sha256), row.split)
    assert metrics(folders["out"])["images_validation"] == (again["split"] == "validation").sum()


def test_regularisation_is_never_held_out(folders: dict[str, Path], tmp_path: Path) -> None:
    """They are there to be trained on."""
    images = tmp_path / "one"
    (images / "class").mkdir(parents=True)
    for seed in range(10):
        scenery(80, 80, seed).save(images / f"{seed}.png")
        scenery(80, 80, 50 + seed).save(images / "class" / f"{seed}.png")
    listed = [{"folder": "class", "repeats": 1, "regularisation": True}]
    settings = sharing(validation_share=0.5, concepts=listed)
    prepare(settings, images=images, validation=images, out=folders["out"])
    rows = read_table(MANIFEST, folders["out"] / "manifest.csv")
    assert set(rows.loc[rows["concept"] == "class", "split"]) == {"train"}
    assert set(rows.loc[rows["concept"] == "", "split"]) == {"train", "validation"}


@pytest.mark.parametrize(
    ("share", "validation"), [(0.2, "data/demo/validation"), (0.0, "data/demo/train")]
)
def test_share_and_folders_agree(tmp_path: Path, share: float, validation: str) -> None:
    """Either a folder of held-out pictures or a share of the one folder, never both or neither."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"] |= {"validation_share": share, "validation_images": validation}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ParamsError, match="validation_images must be"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.slow
def test_dvc_takes_one_folder_for_both(tmp_path: Path) -> None:
    """`${prepare.images}` and `${prepare.validation_images}` may be the same dependency."""
    for name in ("dvc.yaml", "stages", "nano", "data/demo", "data/nano-flux"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"] |= {"validation_share": 0.2, "validation_images": "data/demo/train"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    for command in (["dag", "--dot"], ["status", "prepare"], ["repro", "--single-item", "prepare"]):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        subprocess.run(["dvc", *command], cwd=tmp_path, check=True, env=environment)
    found = metrics(tmp_path / "data/prepare")
    assert found["images_total"] == 24
    assert 0 < found["images_validation"] < 12


def test_buckets_keep_proportions(folders: dict[str, Path]) -> None:
    """Sides in multiples of 64, the area of the square, the shape nearest to the picture's."""
    prepare(params(size_px=256, fit="bucket", min_side_px=32), **folders)
    rows = read_table(MANIFEST, folders["out"] / "manifest.csv").set_index("image")
    sizes = rows[["width_px", "height_px"]].to_numpy().tolist()
    assert dict(zip(rows.index, map(tuple, sizes), strict=True)) == {
        "a": (320, 192),
        "b Grün 🤖": (320, 192),
        "c": (256, 256),
        "d": (256, 256),
        "held-out": (256, 256),
    }
    with Image.open(folders["out"] / "images" / "a.png") as image:
        assert image.size == (320, 192)


def test_saliency_moves_the_crop(folders: dict[str, Path]) -> None:
    """What stands out at the edge is kept, which the centre would cut off."""
    ground = np.full((64, 160, 3), 200, np.uint8)
    ground[20:44, 130:154] = np.asarray(scenery(24, 24))
    Image.fromarray(ground).save(folders["images"] / "aside.png")
    for focus, kept in (("centre", 0.0), ("saliency", 20.0)):
        prepare(params(focus=focus), **folders)
        pixels = np.asarray(Image.open(folders["out"] / "images" / "aside.png"), float)
        assert (pixels.std() > kept) == (focus == "saliency") or pixels.std() == 0.0


def test_every_warning_is_said_counted_and_drawn(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """One picture per warning; each is named, and the metrics know how many there are."""
    images = folders["images"]
    night = np.asarray(scenery(90, 90, 20)) // 12
    framed = np.asarray(scenery(96, 96, 21)).copy()
    framed[:16] = framed[80:] = 0
    Image.fromarray(night.astype(np.uint8)).save(images / "night.png")
    Image.new("RGB", (90, 90), (90, 160, 200)).save(images / "wall.png")
    scenery(200, 200, 22).filter(ImageFilter.GaussianBlur(12)).save(images / "soft.png")
    scenery(34, 34, 23).save(images / "tiny.png")
    Image.fromarray(framed).save(images / "framed.png")
    shutil.copyfile(images / "a.png", images / "twin.png")
    with caplog.at_level(logging.WARNING):
        prepare(params(), **folders)
    found = metrics(folders["out"])
    assert {name: found[name] for name in found if found[name] and "total" not in name} == {
        "exact_duplicates": 1,
        "images_accepted": 11,
        "images_blurred": 1,
        "images_near_black": 1,
        "images_near_uniform": 1,
        "images_strongly_upscaled": 1,
        "images_train": 10,
        "images_upscaled": 1,
        "images_validation": 1,
        "images_with_bars": 1,
        "near_duplicates": 1,
        "outside_kind": 1,
    }
    for words in (
        "night.png: near-black, 99 of 100 pixels darker than",
        "wall.png: near-uniform, channels vary by 0.0",
        "soft.png: blurred, variance of the Laplacian",
        "tiny.png: scaled up 1.88 times from 34x34 pixels",
        "framed.png: bars at the edges",
        "exact duplicates: a.png and twin.png",
        "10 training pictures are few for kind character (20 to 100)",
    ):
        assert words in caplog.text
    with Image.open(folders["out"] / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
        red = np.asarray(sheet.convert("RGB"), int)
        assert ((red - (190, 60, 30)) ** 2).sum(axis=2).min() < 600, "frames of the warnings"


def test_alike_pictures_are_of_low_variety(folders: dict[str, Path]) -> None:
    """Frames of one film teach one picture."""
    for path in folders["images"].glob("*.*"):
        path.unlink()
    base = np.asarray(scenery(80, 80, 1), int)
    for index in range(6):
        noise = np.random.default_rng(index).integers(-6, 7, base.shape)
        picture = np.clip(base + noise, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folders["images"] / f"{index}.png")
    prepare(params(), **folders)
    assert metrics(folders["out"])["low_variety"] == 1
    assert metrics(folders["out"])["near_duplicates"] == 5


@pytest.mark.parametrize(
    ("fit", "focus"),
    [
        ("crop", "centre"),
        ("crop", "saliency"),
        ("pad", "centre"),
        ("bucket", "centre"),
        ("bucket", "saliency"),
    ],
)
def test_real_photographs(tmp_path: Path, fit: str, focus: str) -> None:
    """Photographs and scans that come with scikit-image: colour, grey, JPEG, PNG, many shapes."""
    package = Path(skimage.__file__).parent
    names = (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png",
        "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
        "motorcycle_left.png", "retina.jpg", "rocket.jpg",
    )  # fmt: skip
    images = tmp_path / "photographs"
    images.mkdir()
    for name in names:
        shutil.copyfile(package / "data" / name, images / name)
    shape = {"size_px": 256, "min_side_px": 256, "max_pixels": 3_000_000}
    settings = sharing(**shape, fit=fit, focus=focus, kind="style")
    prepare(settings, images=images, validation=images, out=tmp_path / "out")
    rows = read_table(MANIFEST, tmp_path / "out" / "manifest.csv")
    assert rows["source"].tolist() == sorted(names)
    assert len(rows) == 15
    for row in rows.itertuples():
        with Image.open(tmp_path / "out" / "images" / str(row.file)) as image:
            assert image.size == (row.width_px, row.height_px)
            assert abs(image.width * image.height / 256**2 - 1) < 0.13
    found = metrics(tmp_path / "out")
    assert found["near_duplicates"] == found["images_near_uniform"] == 0
    assert found["images_with_bars"] == 0
