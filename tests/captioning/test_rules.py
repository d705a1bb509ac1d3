"""The trigger is first and exactly once, whatever was written, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.captioning.rules import (
    CaptionRefusedError,
    check_caption,
    put_between,
    put_trigger_first,
    read_caption,
    tidy,
)
from stages.contracts.captions import is_trigger_first, says_something, unreadable_characters


@pytest.mark.parametrize(
    ("caption", "expected", "change"),
    [
        ("tok, a robot", "tok, a robot", "none"),
        ("tok standing in snow", "tok standing in snow", "none"),
        ("tok", "tok", "none"),
        ("a robot in snow", "tok, a robot in snow", "trigger added"),
        ("a token of stock", "tok, a token of stock", "trigger added"),
        ("a robot, tok, in snow", "tok, a robot, in snow", "trigger moved first"),
        ("a robot called tok", "tok, a robot called", "trigger moved first"),
        ("Tok, a robot", "tok, a robot", "trigger moved first"),
        ("tok, a robot, tok", "tok, a robot", "trigger moved first"),
        ("tok tok", "tok", "trigger moved first"),
        ("TOK", "tok", "trigger moved first"),
        ("toks, a robot", "tok, toks, a robot", "trigger added"),
    ],
)
def test_trigger_is_put_first(caption: str, expected: str, change: str) -> None:
    """Every way people write the trigger ends the same way, and doing it twice changes nothing."""
    assert put_trigger_first(caption, "tok") == (expected, change)
    assert put_trigger_first(expected, "tok") == (expected, "none")


@pytest.mark.parametrize("trigger", ["<tok>", "[V]", "t.k", "ohwx-2", "🤖"])
def test_trigger_may_hold_any_sign(trigger: str) -> None:
    """The trigger is text, not a pattern."""
    assert put_trigger_first("a robot, tuk", trigger) == (
        f"{trigger}, a robot, tuk",
        "trigger added",
    )
    expected = (f"{trigger}, a robot", "trigger moved first")
    assert put_trigger_first(f"a robot, {trigger}", trigger) == expected


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"tok, a robot", "tok, a robot"),
        (b"  tok, a robot \r\n", "tok, a robot"),
        (b"\xef\xbb\xbftok, a robot\n", "tok, a robot"),
        ("tok, größer 🤖 「箱」".encode(), "tok, größer 🤖 「箱」"),
        (b"tok,  two  spaces", "tok,  two  spaces"),
    ],
)
def test_captions_are_read_as_written(tmp_path: Path, data: bytes, caption: str) -> None:
    """Only the white space around a caption goes, and the mark that Windows puts before it."""
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert read_caption(path) == caption


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty caption"),
        (b" \n\t ", "empty caption"),
        (b"...", "empty caption"),
        (b"tok, gr\xfcn", "not UTF-8 (byte 0xfc at 7)"),
        ("tok, a robot".encode("utf-16"), "not UTF-8 (byte 0xff at 0)"),
        (b"tok\nrobot", "control characters (line break)"),
        (b"tok\ta\x00b", "control characters (U+0000, U+0009)"),
        ("tok, gr\ufffdn".encode(), "control characters (U+FFFD)"),
        ("\ufeff\ufefftok, a robot".encode(), "control characters (U+FEFF)"),
        ("tok,\u200b a robot".encode(), "control characters (U+200B)"),
        ("tok,\u2028a robot".encode(), "control characters (U+2028)"),
        (b"tok " * 5000, "20000 bytes, too long for a caption"),
    ],
)
def test_unusable_captions_are_refused(tmp_path: Path, data: bytes, what: str) -> None:
    """What a text encoder would read as noise is named with its file."""
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(CaptionRefusedError) as caught:
        read_caption(path)
    assert (caught.value.problem.where, caught.value.problem.what) == (str(path), what)
    assert caught.value.problem.remedy


def test_letters_of_any_script_say_something() -> None:
    """Emptiness is not a matter of the Latin alphabet."""
    assert says_something("箱")
    assert not says_something(" ,.-")


def test_tidy_joins_what_a_tokenizer_took_apart() -> None:
    """Word-piece decoders put spaces before commas."""
    assert tidy(" a red circle , plain  background .\n") == "a red circle, plain background."


@pytest.mark.parametrize(
    ("prefix", "suffix", "expected", "added"),
    [
        ("", "", "a robot  in snow.", []),
        ("a photo of", "", "a photo of a robot in snow.", ["prefix added"]),
        ("", "at night", "a robot in snow. at night", ["suffix added"]),
        ("", ", at night", "a robot in snow, at night", ["suffix added"]),
        (
            "a photo:",
            ", grain",
            "a photo: a robot in snow, grain",
            ["prefix added", "suffix added"],
        ),
    ],
)
def test_prefix_and_suffix(prefix: str, suffix: str, expected: str, added: list[str]) -> None:
    """Without either a caption stays as it is to the byte."""
    assert put_between("a robot  in snow.", prefix, suffix) == (expected, added)


def test_order_is_trigger_prefix_caption_suffix() -> None:
    """The prefix never comes before the trigger, even where it holds it."""
    text, _ = put_between("a robot", "a photo of tok,", ", at night")
    assert put_trigger_first(text, "tok")[0] == "tok, a photo of, a robot, at night"


def test_long_text_from_a_table_is_refused() -> None:
    """A whole book in one cell is no caption."""
    with pytest.raises(CaptionRefusedError, match="16385 characters, too long"):
        check_caption("a" * 16_385, "captions.csv:2")
    assert check_caption("a" * 16_384, "captions.csv:2")


def test_questions_of_the_contract() -> None:
    """The table asks the same questions as the stage."""
    assert is_trigger_first("tok, a robot", "tok")
    assert not is_trigger_first("a robot, tok", "tok")
    assert not is_trigger_first("tok, a robot, TOK", "tok")
    assert not is_trigger_first("token", "tok")
    assert unreadable_characters("tok 👩\u200d🚀") == []
    assert unreadable_characters("a\tb\x00\x85") == ["\x00", "\t", "\x85"]
