"""Every way in which people's captions go wrong, in one folder, in one run, in one message.

Each case is a picture of its own with the caption files that somebody left beside it, and the
verdict that it must get: the caption that comes out, or what is said about it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stages.caption import caption
from stages.contracts.errors import DatasetError
from stages.contracts.tables import CAPTIONS, read_table
from tests.captioning.prepared import Raw, write_prepared
from tests.captioning.settings import caption_params

PARAMS = caption_params(captioner="template", template="a robot")
TEXT_TOKENS = 32


@dataclass(frozen=True)
class Case:
    """Caption files of one picture, named by their suffix, and lines for the two tables."""

    texts: dict[str, bytes] = field(default_factory=dict)
    json_line: str = ""
    csv_line: str = ""
    caption: str = ""
    problem: str = ""


def text(content: str, encoding: str = "utf-8") -> dict[str, bytes]:
    """Return one .txt file."""
    return {".txt": content.encode(encoding)}


GOOD = {
    "plain": Case(text("tok, a robot"), caption="tok, a robot"),
    "none at all": Case(caption="tok, a robot"),
    "byte order mark": Case(text("tok, a robot", "utf-8-sig"), caption="tok, a robot"),
    "windows line end": Case(text("tok, a robot\r\n"), caption="tok, a robot"),
    "blanks around": Case(text("\n\n  tok, a robot \t\n"), caption="tok, a robot"),
    "two spaces": Case(text("tok,  a robot"), caption="tok,  a robot"),
    "emoji 🤖": Case(text("tok, 👩‍🚀 and 🤖"), caption="tok, 👩‍🚀 and 🤖"),
    "umlaut ü": Case(text("tok, größer"), caption="tok, größer"),
    "script": Case(text("tok, 箱"), caption="tok, 箱"),
    "quotes": Case(text('tok, "a" robot\'s; field'), caption='tok, "a" robot\'s; field'),
    "capital suffix": Case({".TXT": b"tok, a robot"}, caption="tok, a robot"),
    "trigger alone": Case(text("tok"), caption="tok"),
    "trigger last": Case(text("a robot, tok"), caption="tok, a robot"),
    "trigger twice": Case(text("tok, a robot, tok"), caption="tok, a robot"),
    "trigger in capitals": Case(text("TOK, a robot"), caption="tok, a robot"),
    "trigger in a word": Case(text("a token"), caption="tok, a token"),
    "trigger joined": Case(text("tok-like robot"), caption="tok-like robot"),
    "too long to read": Case(text("tok" + ", a robot" * 60), caption="tok" + ", a robot" * 60),
    "dots.in.its.name": Case(text("tok, a robot"), caption="tok, a robot"),
    "from json": Case(
        json_line='{"file_name": "from json.png", "text": "tok, json"}', caption="tok, json"
    ),
    "from csv": Case(csv_line='from csv.png,"tok, csv"', caption="tok, csv"),
}

BAD = {
    "utf-16": Case(text("tok, a robot", "utf-16"), problem="not UTF-8 (byte 0xff at 0)"),
    "utf-16 big": Case(text("tok, a robot", "utf-16-be"), problem="control characters (U+0000)"),
    "utf-32": Case(text("tok", "utf-32"), problem="not UTF-8 (byte 0xff at 0)"),
    "latin-1": Case(text("tok, grün", "latin-1"), problem="not UTF-8 (byte 0xfc at 7)"),
    "shift-jis": Case(text("tok, 箱", "shift-jis"), problem="not UTF-8 (byte 0x94 at 5)"),
    "cut in a sign": Case({".txt": "tok, ü".encode()[:-1]}, problem="not UTF-8 (byte 0xc3 at 5)"),
    "surrogate": Case({".txt": b"tok \xed\xa0\x80"}, problem="not UTF-8 (byte 0xed at 4)"),
    "replaced": Case(text("tok, gr\ufffdn"), problem="control characters (U+FFFD)"),
    "empty": Case(text(""), problem="empty caption"),
    "mark alone": Case(text("", "utf-8-sig"), problem="empty caption"),
    "blanks": Case(text(" \t \r\n"), problem="empty caption"),
    "signs alone": Case(text(" ,.;"), problem="empty caption"),
    "two lines": Case(text("tok\na robot"), problem="control characters (line break)"),
    "old mac lines": Case(text("tok\ra robot"), problem="control characters (line break)"),
    "tabulator": Case(text("tok\ta robot"), problem="control characters (U+0009)"),
    "escape": Case(text("tok, \x1b[31mrobot"), problem="control characters (U+001B)"),
    "next line": Case(text("tok,\x85a robot"), problem="control characters (U+0085)"),
    "separator": Case(text("tok,\u2028a robot"), problem="control characters (U+2028)"),
    "mark inside": Case(text("tok, \ufeffrobot"), problem="control characters (U+FEFF)"),
    "a picture": Case({".txt": b"\x89PNG\r\n\x1a\n"}, problem="not UTF-8 (byte 0x89 at 0)"),
    "a book": Case(text("tok " * 5000), problem="20000 bytes, too long for a caption"),
    "two texts": Case(
        {".TXT": b"tok, one", ".txt": b"tok, two"},
        problem="second caption of its picture (the first is in two texts.TXT)",
    ),
    "text and json": Case(
        text("tok, one"),
        json_line='{"file_name": "text and json.png", "text": "tok, one"}',
        problem="second caption of its picture (the first is in text and json.txt)",
    ),
    "json and csv": Case(
        json_line='{"file_name": "json and csv.png", "text": "tok, one"}',
        csv_line="json and csv.png,two",
        problem="second caption of its picture (the first is in captions.csv)",
    ),
    "broken json": Case(
        json_line='{"file_name": "broken json.png", "text": ',
        problem="not a row with a picture and a caption",
    ),
    "null in json": Case(
        json_line='{"file_name": "null in json.png", "text": null}',
        problem="no caption in this row",
    ),
    "cut csv": Case(csv_line="cut csv.png", problem="no caption in this row"),
    "long csv": Case(
        csv_line="long csv.png,tok,robot", problem="not a row with a picture and a caption"
    ),
}

STRAYS = ("gone.txt", "Plain.txt", "plain.png.txt", "plain (1).txt")
"""Captions whose picture is not there under that very name."""


def write_corpus(
    folder: Path, weights: Path, cases: dict[str, Case], strays: tuple[str, ...] = ()
) -> dict[str, Path]:
    """Write a raw folder of the cases and its prepared pictures; return the stage's paths."""
    raws = {"train": folder / "train", "validation": folder / "validation"}
    pictures = [Raw(f"{name}.png") for name in cases]
    write_prepared(folder / "prepare", raws, [*pictures, Raw("held-out.png", "validation")])
    raw = raws["train"]
    for name, case in cases.items():
        # The caption's name as macOS stores it, while the picture's is as typed.
        stem = unicodedata.normalize("NFD", name)
        for suffix, data in case.texts.items():
            (raw / f"{stem}{suffix}").write_bytes(data)
    for stray in strays:
        (raw / stray).write_text("tok, a robot")
    json_lines = [case.json_line for case in cases.values() if case.json_line]
    csv_lines = [case.csv_line for case in cases.values() if case.csv_line]
    (raw / "metadata.jsonl").write_text("\n".join(json_lines), encoding="utf-8")
    (raw / "captions.csv").write_text("\n".join(["file_name,caption", *csv_lines]) + "\n")
    return {
        "weights": weights,
        "images": folder / "prepare",
        "captions": raw,
        "validation_captions": raws["validation"],
        "captioner": Path("nowhere"),
        "out": folder / "caption",
    }


def test_corpus_is_as_large_as_it_claims() -> None:
    """A case that is lost in an edit is noticed."""
    assert (len(GOOD), len(BAD), len(STRAYS)) == (21, 28, 4)


def test_good_captions_come_out_as_expected(tmp_path: Path, weights_manifest: Path) -> None:
    """What can be used is used, changed in nothing but the trigger."""
    paths = write_corpus(tmp_path, weights_manifest, GOOD)
    caption(PARAMS, TEXT_TOKENS, **paths)
    table = read_table(CAPTIONS, paths["out"] / "captions.csv")
    found = dict(zip(table["image"], table["caption"], strict=True))
    expected = {unicodedata.normalize("NFC", name): case.caption for name, case in GOOD.items()}
    assert found == {**expected, "held-out": "tok, a robot"}
    long = table.set_index("image").loc["too long to read"]
    assert (long["clip_cut"] > 0, long["t5_cut"] > 0.8) == (True, True)


def test_bad_captions_are_all_named_in_one_message(tmp_path: Path, weights_manifest: Path) -> None:
    """Each has its verdict, none hides another, none is left out, and nothing is written."""
    paths = write_corpus(tmp_path, weights_manifest, {**GOOD, **BAD}, STRAYS)
    with pytest.raises(DatasetError) as caught:
        caption(PARAMS, TEXT_TOKENS, **paths)
    problems = caught.value.problems
    assert len(problems) == len(BAD) + len(STRAYS) == 32
    assert str(caught.value).startswith("These captions cannot be used (32 problems):")
    assert all(problem.remedy for problem in problems)
    expected = [case.problem for case in BAD.values()] + ["caption without a picture"] * len(STRAYS)
    assert sorted(problem.what for problem in problems) == sorted(expected)
    strays = {
        Path(problem.where).name
        for problem in problems
        if problem.what == "caption without a picture"
    }
    assert strays == set(STRAYS)
    assert not paths["out"].exists()


@pytest.mark.parametrize("name", sorted(BAD))
def test_each_bad_caption_is_found_alone(tmp_path: Path, weights_manifest: Path, name: str) -> None:
    """The verdict is the caption's own and owes nothing to its neighbours."""
    paths = write_corpus(tmp_path, weights_manifest, {"plain": GOOD["plain"], name: BAD[name]})
    with pytest.raises(DatasetError) as caught:
        caption(PARAMS, TEXT_TOKENS, **paths)
    (problem,) = caught.value.problems
    assert problem.what == BAD[name].problem


def test_table_with_a_missing_column_is_one_problem(tmp_path: Path, weights_manifest: Path) -> None:
    """A hundred rows under a wrong header are one mistake."""
    paths = write_corpus(tmp_path, weights_manifest, {"plain": GOOD["plain"]})
    rows = "".join(f"{number}.png,tok\n" for number in range(100))
    (paths["captions"] / "captions.csv").write_text(f"file_name,description\n{rows}")
    with pytest.raises(DatasetError, match="columns file_name and caption") as caught:
        caption(PARAMS, TEXT_TOKENS, **paths)
    assert len(caught.value.problems) == 1
