"""A trigger that means something already is refused, with a word that does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.captioning.trigger import trigger_problems
from stages.families.vocabulary import spell


@pytest.mark.parametrize(
    "trigger", ["tok", "ohwx", "sks", "mytrigger", "tok-2", "[V]", "Tok", "x7"]
)
def test_rare_words_pass(nano_flux: Path, trigger: str) -> None:
    """A word that either tokenizer spells in pieces is free to get a meaning."""
    assert trigger_problems(trigger, nano_flux) == []


@pytest.mark.parametrize(
    ("trigger", "suggestion"),
    [
        ("robot", "rbt"),
        ("style", "stl"),
        ("man", "mnx"),
        ("red", "rdx"),
        ("a", "axq"),
        ("Robot", "rbt"),
        ("ROBOT", "rbt"),
    ],
)
def test_common_words_are_refused(nano_flux: Path, trigger: str, suggestion: str) -> None:
    """Capitals do not make a word rare: CLIP does not see them."""
    (problem,) = trigger_problems(trigger, nano_flux)
    assert problem.where == "caption.trigger"
    assert "is one common token to both text encoders" in problem.what
    assert f"such as {suggestion!r}" in problem.remedy
    assert trigger_problems(suggestion, nano_flux) == []


@pytest.mark.parametrize("trigger", ["🤖", "ü", "tök"])
def test_sign_that_t5_does_not_know_is_refused(nano_flux: Path, trigger: str) -> None:
    """Every unknown sign reads the same, so that the trigger could not be told from others."""
    (problem,) = trigger_problems(trigger, nano_flux)
    assert problem.what == f"T5 lacks a character of {trigger!r} and would read it as unknown"
    suggestion = re.findall(r"'(.+)'", problem.remedy)[0]
    assert trigger_problems(suggestion, nano_flux) == []


def test_spelling_is_the_tokenizers_own(nano_flux: Path) -> None:
    """The pieces come back without markers, and every word has its entry."""
    spellings = spell(nano_flux, ["tok", "robot", "🤖"])
    assert spellings["tok"].clip == ("to", "k</w>")
    assert spellings["tok"].t5 == ("▁", "t", "o", "k")
    assert spellings["robot"].is_one_token
    assert not spellings["tok"].is_one_token
    assert [spellings[word].readable for word in ("tok", "robot", "🤖")] == [True, True, False]
