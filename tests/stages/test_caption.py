"""`caption` keeps a person's words, fills the gaps, and refuses what would teach nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from stages.caption import caption
from stages.contracts.errors import DatasetError, TableError, WeightsError
from stages.contracts.params import CaptionParams, ModelParams, PrepareParams
from stages.contracts.tables import CAPTIONS, read_table
from stages.prepare import prepare
from stages.runtime.files import sha256_file
from tests.captioning.tiny import NOTHING, write_tiny_blip
from tests.imaging.drawings import scenery

PARAMS = CaptionParams(
    trigger="tok",
    captioner="blip",
    folder="unused",
    repository=None,
    revision=None,
    max_new_tokens=3,
)
MODEL = ModelParams(precision="float32", text_tokens=24)


@pytest.fixture
def paths(tmp_path: Path, weights_manifest: Path) -> dict[str, Path]:
    """Four prepared training pictures, two with captions, one validation picture, a captioner."""
    raw, validation = tmp_path / "train", tmp_path / "validation"
    raw.mkdir()
    validation.mkdir()
    for seed, name in enumerate(["a", "b", "c", "ü 🤖"]):
        scenery(64, 64, seed).save(raw / f"{name}.png")
    scenery(64, 64, 9).save(validation / "held-out.png")
    (raw / "a.txt").write_text("tok, a robot\n")
    (raw / "ü 🤖.txt").write_text("a robot, grün")
    (validation / "held-out.txt").write_text("a robot called tok")
    settings = PrepareParams(
        images="unused",
        validation_images="unused",
        size_px=64,
        fit="crop",
        background=[255, 255, 255],
        min_side_px=32,
        max_pixels=10_000,
        max_aspect=3.0,
        near_duplicate_bits=0,
    )
    prepare(settings, images=raw, validation=validation, out=tmp_path / "prepare")
    return {
        "weights": weights_manifest,
        "images": tmp_path / "prepare",
        "captions": raw,
        "validation_captions": validation,
        "captioner": write_tiny_blip(tmp_path / "captioner", "robot"),
        "out": tmp_path / "caption",
    }


def metrics(paths: dict[str, Path]) -> dict[str, Any]:
    """Return the stage's metrics."""
    content: dict[str, Any] = json.loads((paths["out"] / "metrics.json").read_text())
    return content


def test_every_picture_has_one_caption_with_the_trigger_first(paths: dict[str, Path]) -> None:
    """Own captions stay, missing ones are written, and the table says which and what changed."""
    caption(PARAMS, MODEL, **paths)
    table = read_table(CAPTIONS, paths["out"] / "captions.csv")
    columns = ["image", "split", "caption", "origin", "change"]
    assert table[columns].to_numpy().tolist() == [
        ["a", "train", "tok, a robot", "user", "none"],
        ["b", "train", "tok, robot robot robot", "generated", "trigger added"],
        ["c", "train", "tok, robot robot robot", "generated", "trigger added"],
        ["held-out", "validation", "tok, a robot called", "user", "trigger moved first"],
        ["ü 🤖", "train", "tok, a robot, grün", "user", "trigger added"],
    ]
    assert metrics(paths) == {
        "captions_user": 3,
        "captions_generated": 2,
        "captions_changed": 2,
        "tokens_over_limit": 0,
    }


def test_dataset_is_what_other_trainers_read(paths: dict[str, Path]) -> None:
    """Training pictures and captions lie side by side; validation pictures stay out of it."""
    caption(PARAMS, MODEL, **paths)
    files = {path.name: path for path in (paths["out"] / "dataset").iterdir()}
    names = ["a", "b", "c", "ü 🤖"]
    assert sorted(files) == sorted(f"{name}{end}" for name in names for end in (".png", ".txt"))
    assert files["b.txt"].read_text(encoding="utf-8") == "tok, robot robot robot"
    source = paths["images"] / "images" / "ü 🤖.png"
    assert sha256_file(files["ü 🤖.png"]) == sha256_file(source)
    files["a.png"].write_bytes(b"another trainer's edit")
    assert (paths["images"] / "images" / "a.png").stat().st_size > 100


def test_same_bytes_twice(paths: dict[str, Path], tmp_path: Path) -> None:
    """Equal pictures, captions and captioner give equal files."""
    caption(PARAMS, MODEL, **paths)
    again = {**paths, "out": tmp_path / "again"}
    caption(PARAMS, MODEL, **again)
    first, second = (
        [(p.relative_to(out).as_posix(), sha256_file(p)) for p in sorted(out.rglob("*.*"))]
        for out in (paths["out"], again["out"])
    )
    assert len(first) == 10
    assert first == second


def test_captioner_is_not_needed_when_all_is_written(paths: dict[str, Path]) -> None:
    """Whoever captions by hand needs no captioner on disk."""
    for name in ("b", "c"):
        (paths["captions"] / f"{name}.txt").write_text(f"tok, picture {name}")
    caption(PARAMS, MODEL, **{**paths, "captioner": Path("nowhere")})
    assert metrics(paths)["captions_generated"] == 0


def test_token_counts_and_what_is_cut_off(
    paths: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A caption longer than an encoder reads is counted and said: its end is not trained on."""
    (paths["captions"] / "a.txt").write_text("tok, " + "a robot in the centre, " * 20)
    with caplog.at_level(logging.WARNING):
        caption(PARAMS, MODEL, **paths)
    table = read_table(CAPTIONS, paths["out"] / "captions.csv").set_index("image")
    assert table.loc["a", "clip_tokens"] > 77
    assert table.loc["a", "t5_tokens"] > 24
    assert metrics(paths)["tokens_over_limit"] == 1
    assert "caption of a.png: CLIP reads 77 of" in caplog.text


def test_everything_wrong_is_said_at_once_and_old_output_stays(paths: dict[str, Path]) -> None:
    """Bad captions in both folders come in one message, before any captioner is loaded."""
    caption(PARAMS, MODEL, **paths)
    before = (paths["out"] / "captions.csv").read_bytes()
    (paths["captions"] / "a.txt").write_bytes(b"tok, gr\xfcn")
    (paths["captions"] / "b.txt").touch()
    (paths["captions"] / "c.txt").write_text("tok\nrobot")
    (paths["captions"] / "B.txt").write_text("tok, of no picture")
    (paths["validation_captions"] / "a.txt").write_text("tok, wrong folder")
    with pytest.raises(DatasetError) as caught:
        caption(PARAMS, MODEL, **{**paths, "captioner": Path("nowhere")})
    found = sorted(
        (Path(problem.where).name, problem.what.split(" (")[0]) for problem in caught.value.problems
    )
    assert found == [
        ("B.txt", "caption without a picture"),
        ("a.txt", "caption without a picture"),
        ("a.txt", "not UTF-8"),
        ("b.txt", "empty caption"),
        ("c.txt", "control characters"),
    ]
    assert (paths["out"] / "captions.csv").read_bytes() == before


def test_second_caption_of_a_picture_is_refused(paths: dict[str, Path]) -> None:
    """Which of two captions holds is not for us to say."""
    (paths["captions"] / "a.TXT").write_text("tok, another")
    with pytest.raises(DatasetError, match=r"a\.txt: second caption of its picture"):
        caption(PARAMS, MODEL, **paths)


def test_empty_answer_is_an_error_not_a_bare_trigger(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    """A caption of nothing but the trigger would teach that the trigger is everything in it."""
    silent = write_tiny_blip(tmp_path / "silent", NOTHING)
    with pytest.raises(DatasetError) as caught:
        caption(PARAMS, MODEL, **{**paths, "captioner": silent})
    assert [problem.where for problem in caught.value.problems] == ["b.png", "c.png"]
    assert "Write b.txt beside the picture." in str(caught.value)
    assert not paths["out"].exists()


def test_missing_captioner_and_manifest_are_named(paths: dict[str, Path], tmp_path: Path) -> None:
    """Each missing input is a message with the way to get it."""
    with pytest.raises(WeightsError, match=r"nowhere: does not exist.*caption\.folder"):
        caption(PARAMS, MODEL, **{**paths, "captioner": Path("nowhere")})
    with pytest.raises(TableError, match=r"manifest\.csv is missing"):
        caption(PARAMS, MODEL, **{**paths, "images": tmp_path})
