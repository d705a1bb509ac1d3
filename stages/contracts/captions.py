"""What every caption must be, as questions with yes or no: readable, not empty, trigger first."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_UNPRINTABLE: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})
_INVISIBLE: Final = frozenset(
    {"\N{REPLACEMENT CHARACTER}", "\N{ZERO WIDTH NO-BREAK SPACE}", "\N{ZERO WIDTH SPACE}"}
)
"""What a wrong encoding or a web page leaves behind; joiners (U+200D) are part of many emoji."""


def says_something(caption: str) -> bool:
    """Return whether there is a letter or digit in the caption, of any script."""
    return any(sign.isalnum() for sign in caption)


def unreadable_characters(caption: str) -> list[str]:
    """Return the line breaks, control characters and invisible signs in the caption, sorted."""
    return sorted(
        {
            sign
            for sign in caption
            if unicodedata.category(sign) in _UNPRINTABLE or sign in _INVISIBLE
        }
    )


def find_trigger(caption: str, trigger: str) -> list[re.Match[str]]:
    """Return where the trigger stands as a word of its own, in capitals or not."""
    pattern = rf"(?<!\w){re.escape(trigger)}(?!\w)"
    return list(re.finditer(pattern, caption, re.IGNORECASE))


def is_trigger_first(caption: str, trigger: str) -> bool:
    """Return whether the trigger, spelt exactly so, comes first and exactly once."""
    return caption.startswith(trigger) and len(find_trigger(caption, trigger)) == 1
