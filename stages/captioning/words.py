"""Which words the training captions are made of, and which of them never vary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

import pandas as pd

from stages.contracts.captions import find_trigger

_WORD: Final = re.compile(r"\w+(?:['’-]\w+)*")


def count_words(captions: Sequence[str], trigger: str) -> pd.DataFrame:
    """Return one row per word of the captions, the trigger apart, in small letters.

    What stands in every caption is learnt together with the trigger and does not answer to
    prompts on its own; `share` is 1.0 there.
    """
    occurrences: Counter[str] = Counter()
    holding: Counter[str] = Counter()
    for caption in captions:
        words = _WORD.findall(_without(caption, trigger).lower())
        occurrences.update(words)
        holding.update(set(words))
    rows = [
        {
            "word": word,
            "captions": holding[word],
            "share": holding[word] / len(captions),
            "occurrences": count,
        }
        for word, count in sorted(occurrences.items())
    ]
    return pd.DataFrame(rows, columns=["word", "captions", "share", "occurrences"]).astype(
        {"word": str, "captions": int, "share": float, "occurrences": int}
    )


def words_in_all(words: pd.DataFrame) -> list[str]:
    """Return the words that stand in every caption."""
    return [str(word) for word in words.loc[words["share"] == 1.0, "word"]]


def _without(caption: str, trigger: str) -> str:
    for match in reversed(find_trigger(caption, trigger)):
        caption = f"{caption[: match.start()]} {caption[match.end() :]}"
    return caption
