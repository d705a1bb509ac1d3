"""Words are counted as people read them, the trigger apart."""

from __future__ import annotations

from stages.captioning.words import count_words, words_in_all


def test_words_their_captions_and_occurrences() -> None:
    """Capitals and commas make no new word, hyphens and apostrophes none of two."""
    captions = [
        "tok, a Robot, a well-lit field",
        "tok, the robot's field, null",
        "tok, A token in a FIELD",
    ]
    words = count_words(captions, "tok")
    assert words.to_numpy().tolist() == [
        ["a", 2, 2 / 3, 4],
        ["field", 3, 1.0, 3],
        ["in", 1, 1 / 3, 1],
        ["null", 1, 1 / 3, 1],
        ["robot", 1, 1 / 3, 1],
        ["robot's", 1, 1 / 3, 1],
        ["the", 1, 1 / 3, 1],
        ["token", 1, 1 / 3, 1],
        ["well-lit", 1, 1 / 3, 1],
    ]
    assert words_in_all(words) == ["field"]


def test_any_script_and_no_words_at_all() -> None:
    """Words are not a matter of the Latin alphabet, and a bare trigger has none."""
    assert words_in_all(count_words(["tok, größer 箱 STRASSE", "tok strasse größer"], "tok")) == [
        "größer",
        "strasse",
    ]
    assert count_words(["tok"], "tok").empty
    assert count_words([], "tok").empty
