"""The trigger taken out of a caption, and the words that forbid mirroring."""

from __future__ import annotations

import pytest

from stages.encoding.captions import sided_words, without_trigger


@pytest.mark.parametrize(
    ("caption", "stand_in", "expected"),
    [
        ("tok, a large robot", "", "a large robot"),
        ("tok walking in the rain", "", "walking in the rain"),
        ("tok walking in the rain", "a robot", "a robot walking in the rain"),
        ("tok, a large robot", "robot", "robot, a large robot"),
        ("tok", "", ""),
        ("tok", "robot", "robot"),
    ],
)
def test_trigger_is_taken_out(caption: str, stand_in: str, expected: str) -> None:
    """The rest keeps its words; a class word stands in the trigger's place."""
    assert without_trigger(caption, "tok", stand_in) == expected


def test_regularisation_caption_stays() -> None:
    """It has no trigger to take out."""
    assert without_trigger("a token of love", "", "robot") == "a token of love"


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("tok, a robot on the left", ["left"]),
        ("tok, Right hand raised, a SIGN behind", ["right", "sign"]),
        ("tok, bright light, a wrought gate, designs", []),
        ("tok in front of a wall with lettering", ["lettering"]),
    ],
)
def test_words_that_forbid_mirroring(caption: str, words: list[str]) -> None:
    """Sides and lettering, as whole words, in capitals or not."""
    assert sided_words(caption) == words
