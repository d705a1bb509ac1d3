"""A folder is judged by names and links, and nothing in it is lost in silence."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from stages.imaging.folder import concept_of, list_folder, picture_name, shared_names


def touch(folder: Path, *names: str) -> None:
    """Make empty files."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def whats(folder: Path) -> list[str]:
    """Return what is wrong, without places and remedies."""
    listing = list_folder(folder)
    refused = [refusal.problem for refusal in listing.refused]
    return list(dict.fromkeys(problem.what for problem in [*refused, *listing.problems]))


def test_pictures_and_captions_are_sorted_and_the_rest_left_alone(tmp_path: Path) -> None:
    """Hidden files, system files and notes are no pictures and no problems."""
    touch(tmp_path, "b.JPG", "a.png", "a.txt", ".DS_Store", "Thumbs.db", "README.md", "meta.jsonl")
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.pictures] == ["a.png", "b.JPG"]
    assert [path.name for path in listing.captions] == ["a.txt"]
    assert listing.refused == ()
    assert listing.problems == ()


def test_unusual_names_are_accepted(tmp_path: Path) -> None:
    """Spaces, umlauts, commas, quotes and emoji are what people's files are called."""
    names = ['a "b", c.png', "Grün & blau.png", "tok 🤖.png", "100%.png"]
    touch(tmp_path, *names)
    assert [path.name for path in list_folder(tmp_path).pictures] == sorted(names)


def test_name_is_the_same_from_every_file_system(tmp_path: Path) -> None:
    """MacOS decomposes umlauts; the picture's name must not depend on it."""
    decomposed = unicodedata.normalize("NFD", "grün.png")
    assert picture_name(tmp_path / decomposed, tmp_path) == "grün"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("holiday.psd", "not a picture format that is read (.psd)"),
        ("noextension", "not a picture format that is read (no extension)"),
        ("two\nlines.png", "file name cannot be used"),
        ("back\\slash.png", "file name cannot be used"),
        (os.fsdecode(b"latin\xfc.png"), "file name cannot be used"),
    ],
)
def test_files_that_might_be_meant_as_pictures_are_named(
    tmp_path: Path, name: str, what: str
) -> None:
    """A file that would be passed over in silence is a picture missing from the LoRA."""
    touch(tmp_path, "good.png", name)
    assert whats(tmp_path) == [what]


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.png", "a.jpg"), ("a.png", "A.PNG"), ("ü.png", unicodedata.normalize("NFD", "ü.jpg"))],
)
def test_names_that_differ_in_extension_only_clash(tmp_path: Path, first: str, second: str) -> None:
    """They would share one caption, and on some file systems one output."""
    touch(tmp_path, first, second)
    (what,) = whats(tmp_path)
    assert what.startswith("shares its name with others")
    assert first in what
    assert second in what


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    """DVC hashes the folder: a link out of it would bring in data that no hash covers."""
    touch(tmp_path / "elsewhere", "far.png")
    touch(tmp_path / "set", "near.png")
    (tmp_path / "set" / "inside.png").symlink_to(tmp_path / "set" / "near.png")
    (tmp_path / "set" / "outside.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (tmp_path / "set" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    listing = list_folder(tmp_path / "set")
    assert {(refusal.path.name, refusal.problem.what) for refusal in listing.refused} == {
        ("outside.png", "link that leaves the folder"),
        ("gone.png", "link to a file that is not there"),
    }
    assert [path.name for path in listing.pictures] == ["inside.png", "near.png"]


def test_sub_folders_are_concepts(tmp_path: Path) -> None:
    """A concept's folder gives its pictures their names; it has no folders of its own."""
    touch(tmp_path, "a.png")
    touch(tmp_path / "Hüte", "a.png", "a.txt", ".hidden")
    touch(tmp_path / "Hüte" / "more", "b.png")
    listing = list_folder(tmp_path)
    assert [picture_name(path, tmp_path) for path in listing.pictures] == ["Hüte-a", "a"]
    assert [concept_of(path, tmp_path) for path in listing.pictures] == ["Hüte", ""]
    assert [path.name for path in listing.captions] == ["a.txt"]
    assert whats(tmp_path) == ["sub-folder of a sub-folder"]


def test_names_are_unique_across_concepts(tmp_path: Path) -> None:
    """`hat-1.png` beside the folder `hat` with `1.png` would be two pictures of one name."""
    touch(tmp_path, "hat-1.png", "good.png")
    touch(tmp_path / "hat", "1.jpg")
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.pictures] == ["good.png"]
    assert sorted(refusal.path.name for refusal in listing.refused) == ["1.jpg", "hat-1.png"]
    assert whats(tmp_path) == [
        "shares its name with others (hat/1.jpg, hat-1.png), so they would all be called hat-1"
    ]


def test_links_to_folders_outside_are_refused(tmp_path: Path) -> None:
    """A concept that lies elsewhere is data that no hash covers."""
    touch(tmp_path / "elsewhere", "far.png")
    touch(tmp_path / "set", "near.png")
    (tmp_path / "set" / "hats").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert whats(tmp_path / "set") == ["link that leaves the folder"]
    assert [path.name for path in list_folder(tmp_path / "set").pictures] == ["near.png"]


def test_special_files_are_named(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert whats(tmp_path) == ["not a regular file"]


def test_missing_and_empty_folders_are_problems(tmp_path: Path) -> None:
    """Zero pictures is never what a person wants to train on."""
    assert whats(tmp_path / "nowhere") == ["does not exist"]
    assert whats(tmp_path) == ["holds no pictures"]
    touch(tmp_path, "file.png")
    assert whats(tmp_path / "file.png") == ["not a folder"]


def test_validation_pictures_do_not_take_training_names() -> None:
    """One name is one picture in every later table."""
    training = [Path("train/tok-1.png"), Path("train/tok-2.png")]
    validation = [Path("validation/TOK-1.jpg"), Path("validation/tok-3.png")]
    (refusal,) = shared_names(training, Path("train"), validation, Path("validation"))
    assert refusal.path == Path("validation/TOK-1.jpg")
    assert "training picture tok-1.png" in refusal.problem.what
