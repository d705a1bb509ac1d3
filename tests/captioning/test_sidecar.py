"""A person's captions are found wherever they may lie, and each line that is none is named."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from stages.captioning.sidecar import Written, read_written
from stages.contracts.errors import Problem

PICTURES = ["a.png", "b.jpg", "night/a.png", "night/ü 🤖.webp"]


def read(folder: Path) -> tuple[dict[str, Written], list[Problem]]:
    """Return what is found in the folder."""
    return read_written(folder, sorted(folder.rglob("*.[tT][xX][tT]")), PICTURES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A raw folder with one concept."""
    (tmp_path / "night").mkdir()
    return tmp_path


def found(folder: Path) -> dict[str, tuple[str, str]]:
    """Return picture -> caption and source, where nothing is wrong."""
    written, problems = read(folder)
    assert problems == []
    return {picture: (entry.text, entry.source) for picture, entry in written.items()}


def test_texts_beside_their_pictures(folder: Path) -> None:
    """A name is one name in both of Unicode's forms; sub-folders are kept apart."""
    (folder / "a.txt").write_text("tok, outside")
    (folder / "night" / "a.TXT").write_text("tok, inside\r\n")
    decomposed = unicodedata.normalize("NFD", "ü 🤖.txt")
    (folder / "night" / decomposed).write_text("tok, größer", encoding="utf-8")
    assert found(folder) == {
        "a.png": ("tok, outside", "a.txt"),
        "night/a.png": ("tok, inside", "night/a.TXT"),
        "night/ü 🤖.webp": ("tok, größer", "night/ü 🤖.txt"),
    }


def test_json_lines_of_the_folder_and_of_a_concept(folder: Path) -> None:
    """As Hugging Face's imagefolder has them; other fields are left alone."""
    lines = [
        {"file_name": "a.png", "text": "tok, a", "objects": [1, 2]},
        {"file_name": "night/a.png", "caption": " tok, inside "},
    ]
    text = "\r\n".join(json.dumps(line) for line in lines) + "\n\n"
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8-sig")
    line = {"file_name": unicodedata.normalize("NFD", "ü 🤖.webp"), "text": "tok, ü"}
    (folder / "night" / "Metadata.jsonl").write_text(json.dumps(line))
    assert found(folder) == {
        "a.png": ("tok, a", "metadata.jsonl"),
        "night/a.png": ("tok, inside", "metadata.jsonl"),
        "night/ü 🤖.webp": ("tok, ü", "night/Metadata.jsonl"),
    }


@pytest.mark.parametrize("header", ["file_name,caption", "file,caption", "file_name,text"])
def test_csv_table(folder: Path, header: str) -> None:
    """Commas, quotes and further columns are no trouble."""
    rows = f'{header},note\r\na.png,"tok, ""a"" robot",1\r\nb.jpg,"tok, b",2\r\n'
    (folder / "captions.csv").write_text(rows, newline="")
    assert found(folder) == {
        "a.png": ('tok, "a" robot', "captions.csv"),
        "b.jpg": ("tok, b", "captions.csv"),
    }


def test_two_sources_of_one_picture(folder: Path) -> None:
    """Which of two captions holds is not for us to say, even if they are equal."""
    (folder / "a.txt").write_text("tok, a")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "tok, a"}\n')
    (folder / "captions.csv").write_text("file,caption\nb.jpg,one\nb.jpg,two\n")
    written, problems = read(folder)
    assert set(written) == {"a.png", "b.jpg"}
    assert [(Path(problem.where).name, problem.what) for problem in problems] == [
        ("captions.csv:3", "second caption of its picture (the first is in captions.csv)"),
        ("metadata.jsonl:1", "second caption of its picture (the first is in a.txt)"),
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"file_name": "a.png", "text": "tok', "not a row with a picture and a caption"),
        ('["a.png", "tok"]', "not a row with a picture and a caption"),
        ("[" * 100_000, "not a row with a picture and a caption"),
        ('{"text": "tok"}', "no file name in this row"),
        ('{"file_name": 7, "text": "tok"}', "no file name in this row"),
        ('{"file_name": "a.png"}', "no caption in this row"),
        ('{"file_name": "a.png", "text": null}', "no caption in this row"),
        ('{"file_name": "a.png", "text": ["tok"]}', "no caption in this row"),
        ('{"file_name": "a.png", "text": "x", "caption": "y"}', "two captions in one row"),
        ('{"file_name": "a.png", "text": "  "}', "empty caption"),
        ('{"file_name": "a.png", "text": "a\\nb"}', "control characters (line break)"),
        ('{"file_name": "a.png", "text": "a \\ud800"}', "control characters (U+D800)"),
        ('{"file_name": "c.png", "text": "tok"}', "caption without a picture"),
        ('{"file_name": "../a.png", "text": "tok"}', "caption without a picture"),
        ('{"file_name": "a.PNG", "text": "tok"}', "caption without a picture"),
    ],
)
def test_lines_that_are_no_caption(folder: Path, line: str, what: str) -> None:
    """Each is named with its line; the others are read."""
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "b.jpg", "text": "tok"}}\n{line}\n')
    written, problems = read(folder)
    assert set(written) == {"b.jpg"}
    assert [(problem.where, problem.what) for problem in problems] == [
        (f"{folder / 'metadata.jsonl'}:2", what)
    ]


@pytest.mark.parametrize(
    ("table", "line", "what"),
    [
        ("", 1, "not a row with a picture and a caption"),
        ("file_name,title\na.png,tok\n", 1, "not a row with a picture and a caption"),
        ("caption\ntok\n", 1, "not a row with a picture and a caption"),
        ("file_name,caption\na.png\n", 2, "no caption in this row"),
        ("file_name,caption\na.png,tok, a robot\n", 2, "not a row with a picture and a caption"),
        ('file_name,caption\na.png,"tok\n', 2, "not a row with a picture and a caption"),
        ("file_name,caption\na.png,\n", 2, "empty caption"),
        ("file_name,caption\n,tok\n", 2, "caption without a picture"),
    ],
)
def test_tables_that_are_none(folder: Path, table: str, line: int, what: str) -> None:
    """A comma too many would cut the caption short in silence; it is refused."""
    (folder / "captions.csv").write_text(table)
    written, problems = read(folder)
    assert written == {}
    assert [(problem.where, problem.what) for problem in problems] == [
        (f"{folder / 'captions.csv'}:{line}", what)
    ]
    assert problems[0].remedy


def test_table_in_another_encoding(folder: Path) -> None:
    """Excel's own way to save is named, not guessed."""
    (folder / "captions.csv").write_bytes("file,caption\na.png,grün\n".encode("latin-1"))
    (folder / "metadata.jsonl").write_bytes('{"file_name": "a.png"}'.encode("utf-16"))
    _, problems = read(folder)
    assert [problem.what for problem in problems] == [
        "not UTF-8 (byte 0xfc at 21)",
        "not UTF-8 (byte 0xff at 0)",
    ]
