"""`caption` keeps a person's words, fills the gaps, and refuses what would teach nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from stages.caption import caption
from stages.contracts.errors import DatasetError, TableError, WeightsError
from stages.contracts.tables import CAPTIONS, WORDS, read_table
from stages.runtime.files import sha256_file
from tests.captioning.prepared import Raw, write_prepared
from tests.captioning.settings import caption_params
from tests.captioning.tiny import NOTHING, write_tiny_blip

PARAMS = caption_params(max_new_tokens=3)
TEXT_TOKENS = 24


def make(folder: Path, weights: Path, pictures: list[Raw]) -> dict[str, Path]:
    """Prepare pictures in `folder`; return the stage's paths."""
    raws = {"train": folder / "train", "validation": folder / "validation"}
    for raw in raws.values():
        raw.mkdir(parents=True)
    if not any(picture.split == "validation" for picture in pictures):
        pictures = [*pictures, Raw("held-out.png", "validation")]
        (raws["validation"] / "held-out.txt").write_text("a robot called tok")
    write_prepared(folder / "prepare", raws, pictures)
    return {
        "weights": weights,
        "images": folder / "prepare",
        "captions": raws["train"],
        "validation_captions": raws["validation"],
        "captioner": Path("nowhere"),
        "out": folder / "caption",
    }


@pytest.fixture
def paths(tmp_path: Path, weights_manifest: Path) -> dict[str, Path]:
    """Four prepared training pictures, two with captions, one validation picture, a captioner."""
    names = ["a", "b", "c", "ü 🤖"]
    paths = make(tmp_path, weights_manifest, [Raw(f"{name}.png") for name in names])
    (paths["captions"] / "a.txt").write_text("tok, a robot\n")
    (paths["captions"] / "ü 🤖.txt").write_text("a robot, grün")
    return {**paths, "captioner": write_tiny_blip(tmp_path / "captioner", "robot")}


def metrics(paths: dict[str, Path]) -> dict[str, Any]:
    """Return the stage's metrics."""
    content: dict[str, Any] = json.loads((paths["out"] / "metrics.json").read_text())
    return content


def test_every_picture_has_one_caption_with_the_trigger_first(paths: dict[str, Path]) -> None:
    """Own captions stay, missing ones are written, and the table says which and what changed."""
    caption(PARAMS, TEXT_TOKENS, **paths)
    table = read_table(CAPTIONS, paths["out"] / "captions.csv")
    columns = ["image", "split", "caption", "written_by", "change"]
    assert table[columns].to_numpy().tolist() == [
        ["a", "train", "tok, a robot", "a.txt", "none"],
        ["b", "train", "tok, robot robot robot", "blip", "trigger added"],
        ["c", "train", "tok, robot robot robot", "blip", "trigger added"],
        ["held-out", "validation", "tok, a robot called", "held-out.txt", "trigger moved first"],
        ["ü 🤖", "train", "tok, a robot, grün", "ü 🤖.txt", "trigger added"],
    ]
    assert table["origin"].tolist() == ["user", "generated", "generated", "user", "user"]
    assert set(table["trigger"]) == {"tok"}
    assert metrics(paths) == {
        "captions_user": 3,
        "captions_generated": 2,
        "captions_changed": 2,
        "tokens_over_limit": 0,
        "words": 3,
        "words_in_every_caption": 1,
        "clip_tokens_min": 7,
        "clip_tokens_median": 8,
        "clip_tokens_max": 12,
        "t5_tokens_min": 8,
        "t5_tokens_median": 9,
        "t5_tokens_max": 15,
    }
    words = read_table(WORDS, paths["out"] / "words.csv")
    assert words[["word", "captions", "occurrences"]].to_numpy().tolist() == [
        ["a", 2, 2],
        ["grün", 1, 1],
        ["robot", 4, 8],
    ]


def test_dataset_is_what_other_trainers_read(paths: dict[str, Path]) -> None:
    """Training pictures and captions lie side by side; validation pictures stay out of it."""
    caption(PARAMS, TEXT_TOKENS, **paths)
    assert [path.name for path in (paths["out"] / "dataset").iterdir()] == ["training"]
    folder = paths["out"] / "dataset" / "training" / "1_tok"
    files = {path.name: path for path in folder.iterdir()}
    names = ["a", "b", "c", "ü 🤖"]
    assert sorted(files) == sorted(f"{name}{end}" for name in names for end in (".png", ".txt"))
    assert files["b.txt"].read_text(encoding="utf-8") == "tok, robot robot robot"
    source = paths["images"] / "images" / "ü 🤖.png"
    assert sha256_file(files["ü 🤖.png"]) == sha256_file(source)
    files["a.png"].write_bytes(b"another trainer's edit")
    assert (paths["images"] / "images" / "a.png").stat().st_size > 100


def test_same_bytes_twice(paths: dict[str, Path], tmp_path: Path) -> None:
    """Equal pictures, captions and captioner give equal files."""
    caption(PARAMS, TEXT_TOKENS, **paths)
    again = {**paths, "out": tmp_path / "again"}
    caption(PARAMS, TEXT_TOKENS, **again)
    first, second = (
        [(p.relative_to(out).as_posix(), sha256_file(p)) for p in sorted(out.rglob("*.*"))]
        for out in (paths["out"], again["out"])
    )
    assert len(first) == 11
    assert first == second


def test_captioner_is_not_needed_when_all_is_written(paths: dict[str, Path]) -> None:
    """Whoever captions by hand needs no captioner on disk."""
    for name in ("b", "c"):
        (paths["captions"] / f"{name}.txt").write_text(f"tok, picture {name}")
    caption(PARAMS, TEXT_TOKENS, **{**paths, "captioner": Path("nowhere")})
    assert metrics(paths)["captions_generated"] == 0


def test_token_counts_and_what_is_cut_off(
    paths: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A caption longer than an encoder reads is counted and said: its end is not trained on."""
    (paths["captions"] / "a.txt").write_text("tok, " + "a robot in the centre, " * 20)
    with caplog.at_level(logging.WARNING):
        caption(PARAMS, TEXT_TOKENS, **paths)
    table = read_table(CAPTIONS, paths["out"] / "captions.csv").set_index("image")
    assert table.loc["a", "clip_tokens"] > 77
    t5_tokens = table.loc["a", "t5_tokens"]
    assert t5_tokens > 24
    assert table.loc["a", "t5_cut"] == pytest.approx((t5_tokens - 24) / t5_tokens)
    assert table.loc["a", "clip_cut"] > 0
    assert table.loc["b", ["clip_cut", "t5_cut"]].tolist() == [0.0, 0.0]
    assert metrics(paths)["tokens_over_limit"] == 1
    assert "caption of a.png: CLIP reads 77 of" in caplog.text


def test_everything_wrong_is_said_at_once_and_old_output_stays(paths: dict[str, Path]) -> None:
    """Bad captions in both folders come in one message, before any captioner is loaded."""
    caption(PARAMS, TEXT_TOKENS, **paths)
    before = (paths["out"] / "captions.csv").read_bytes()
    (paths["captions"] / "a.txt").write_bytes(b"tok, gr\xfcn")
    (paths["captions"] / "b.txt").touch()
    (paths["captions"] / "c.txt").write_text("tok\nrobot")
    (paths["captions"] / "B.txt").write_text("tok, of no picture")
    (paths["validation_captions"] / "a.txt").write_text("tok, wrong folder")
    with pytest.raises(DatasetError) as caught:
        caption(PARAMS, TEXT_TOKENS, **{**paths, "captioner": Path("nowhere")})
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
        caption(PARAMS, TEXT_TOKENS, **paths)


def test_empty_answer_is_an_error_not_a_bare_trigger(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    """A caption of nothing but the trigger would teach that the trigger is everything in it."""
    silent = write_tiny_blip(tmp_path / "silent", NOTHING)
    with pytest.raises(DatasetError) as caught:
        caption(PARAMS, TEXT_TOKENS, **{**paths, "captioner": silent})
    assert [problem.where for problem in caught.value.problems] == ["b.png", "c.png"]
    assert "Write b.txt beside the picture." in str(caught.value)
    assert not paths["out"].exists()


def test_missing_captioner_and_manifest_are_named(paths: dict[str, Path], tmp_path: Path) -> None:
    """Each missing input is a message with the way to get it."""
    with pytest.raises(WeightsError, match=r"nowhere: does not exist.*caption\.folder"):
        caption(PARAMS, TEXT_TOKENS, **{**paths, "captioner": Path("nowhere")})
    with pytest.raises(TableError, match=r"manifest\.csv is missing"):
        caption(PARAMS, TEXT_TOKENS, **{**paths, "images": tmp_path})


def test_prefix_and_suffix_are_for_generated_captions(paths: dict[str, Path]) -> None:
    """Trigger, prefix, caption, suffix; a person's caption stays a person's."""
    caption(
        caption_params(max_new_tokens=3, prefix="a drawing of a", suffix=", plain light"),
        TEXT_TOKENS,
        **paths,
    )
    table = read_table(CAPTIONS, paths["out"] / "captions.csv").set_index("image")
    assert table.loc["a", "caption"] == "tok, a robot"
    assert table.loc["b", "caption"] == "tok, a drawing of a robot robot robot, plain light"
    assert table.loc["b", "change"] == "prefix added; suffix added; trigger added"


def test_concepts_repeats_and_regularisation(tmp_path: Path, weights_manifest: Path) -> None:
    """Regularisation pictures show what the trigger does not mean: captions without it, apart."""
    paths = make(
        tmp_path,
        weights_manifest,
        [
            Raw("a.png"),
            Raw("at_night/a.png", repeats=3),
            Raw("person/b.png", regularisation=True),
            Raw("person/c.png", regularisation=True),
            Raw("empty.png", skipped=True),
        ],
    )
    lines = [
        {"file_name": "a.png", "text": "a robot"},
        {"file_name": "empty.png", "text": "of a skipped picture"},
    ]
    table = "\n".join(json.dumps(line) for line in lines)
    (paths["captions"] / "metadata.jsonl").write_text(table)
    (paths["captions"] / "person" / "b.txt").write_text("a token person")
    params = caption_params(captioner="template", template="a robot {concept}")
    with pytest.raises(DatasetError, match=r"c\.png") as caught:
        caption(
            caption_params(captioner="template", template="a tok {concept}"), TEXT_TOKENS, **paths
        )
    assert "caption of a regularisation picture with the trigger 'tok'" in str(caught.value)

    caption(params, TEXT_TOKENS, **paths)
    columns = ["image", "trigger", "caption", "written_by", "change"]
    written = read_table(CAPTIONS, paths["out"] / "captions.csv")[columns]
    assert written.to_numpy().tolist() == [
        ["a", "tok", "tok, a robot", "metadata.jsonl", "trigger added"],
        ["at_night-a", "tok", "tok, a robot at night", "template", "trigger added"],
        ["held-out", "tok", "tok, a robot called", "held-out.txt", "trigger moved first"],
        ["person-b", "", "a token person", "person/b.txt", "none"],
        ["person-c", "", "a robot person", "template", "none"],
    ]
    assert sorted(
        path.relative_to(paths["out"]).as_posix() for path in paths["out"].rglob("*.txt")
    ) == [
        "dataset/regularisation/1_person/person-b.txt",
        "dataset/regularisation/1_person/person-c.txt",
        "dataset/training/1_tok/a.txt",
        "dataset/training/3_at_night/at_night-a.txt",
    ]
    words = read_table(WORDS, paths["out"] / "words.csv")
    assert words["word"].tolist() == ["a", "at", "night", "robot"]


def test_pictures_without_own_caption_and_without_captioner(paths: dict[str, Path]) -> None:
    """With `sidecar` every picture needs a caption; all that lack one are named."""
    with pytest.raises(DatasetError) as caught:
        caption(caption_params(captioner="sidecar"), TEXT_TOKENS, **paths)
    assert [problem.where for problem in caught.value.problems] == ["b.png", "c.png"]
    assert "Write b.txt, or set caption.captioner" in str(caught.value)
    (paths["captions"] / "captions.csv").write_text("file,caption\nb.png,one\nc.png,two\n")
    caption(caption_params(captioner="sidecar"), TEXT_TOKENS, **paths)
    assert metrics(paths)["captions_user"] == 5


def test_common_word_as_trigger_is_refused(paths: dict[str, Path]) -> None:
    """Before any captioner is loaded, and together with all else that is wrong."""
    (paths["captions"] / "a.txt").write_text("")
    with pytest.raises(DatasetError) as caught:
        caption(
            caption_params(trigger="robot"), TEXT_TOKENS, **{**paths, "captioner": Path("nowhere")}
        )
    first, second = caught.value.problems
    assert first.what == "empty caption" or second.what == "empty caption"
    assert "caption.trigger: 'robot' is one common token to both text encoders" in str(caught.value)
    assert "such as 'rbt'" in str(caught.value)


def test_pictures_held_out_of_the_training_folder(tmp_path: Path, weights_manifest: Path) -> None:
    """Their captions lie beside them; a validation folder that nobody uses is not looked at."""
    pictures = [Raw("a.png"), Raw("b.png", "validation", held_out=True)]
    paths = make(tmp_path, weights_manifest, pictures)
    leftover = paths["validation_captions"]
    (leftover / "b.png").write_bytes(b"another picture")
    (leftover / "b.txt").write_text("tok, another picture")
    (leftover / "held-out.txt").unlink(missing_ok=True)
    (paths["captions"] / "b.txt").write_text("tok, held out")
    caption(caption_params(captioner="template", template="a robot"), TEXT_TOKENS, **paths)
    table = read_table(CAPTIONS, paths["out"] / "captions.csv")
    assert table[["image", "split", "caption"]].to_numpy().tolist() == [
        ["a", "train", "tok, a robot"],
        ["b", "validation", "tok, held out"],
    ]
