"""Whether a trigger is a word that the base model does not know yet.

A word that is one token in both tokenizers ("style", "man", "robot") means something already: the
LoRA would bend that meaning in every prompt instead of learning a name of its own. A word that is
one token for CLIP alone ("sks", which is why DreamBooth used it) is rare enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stages.contracts.errors import Problem
from stages.families.vocabulary import Spelling, spell

_WHERE: Final = "caption.trigger"
_VOWELS: Final = frozenset("aeiouy")
_ENDINGS: Final = ("", "x", "xq", "xqz", "7", "x7", "xq7")
_SHORTEST: Final = 3


def trigger_problems(trigger: str, folder: Path) -> list[Problem]:
    """Return why the trigger cannot be used with the base model in `folder`, if it cannot."""
    variants = list(dict.fromkeys([trigger, trigger.lower()]))
    suggestions = list(_suggestions(trigger))
    spellings = spell(folder, [*variants, *suggestions])
    if not spellings[trigger].readable:
        what = f"T5 lacks a character of {trigger!r} and would read it as unknown"
    elif known := [word for word in variants if spellings[word].is_one_token]:
        what = f"{known[0]!r} is one common token to both text encoders, so it has a meaning"
    else:
        return []
    rare = next(word for word in suggestions if _is_rare(spellings[word]))
    return [Problem(_WHERE, what, f"Take a rarer word, such as {rare!r}, in the prompts too.")]


def _is_rare(spelling: Spelling) -> bool:
    return spelling.readable and len(spelling.clip) > 1 and len(spelling.t5) > 1


def _suggestions(trigger: str) -> Iterator[str]:
    """Yield words that recall the trigger, the plainest first; one is rare in any vocabulary."""
    letters = [each for each in trigger.lower() if each.isascii() and each.isalpha()]
    skeleton = "".join(each for each in letters if each not in _VOWELS)
    for stem in (skeleton, "".join(letters), "ohwx", "xqzv"):
        for ending in _ENDINGS:
            if len(stem + ending) >= _SHORTEST and stem:
                yield stem + ending
