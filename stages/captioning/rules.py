"""What a caption must be: one line of readable text, the trigger first and exactly once."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Final, Literal

from stages.contracts.errors import Problem

Change = Literal["none", "trigger added", "trigger moved first"]

_LONGEST_BYTES: Final = 16_384
"""Some hundred times what the text encoders read: a file this long is no caption."""

_UNPRINTABLE: Final = frozenset({"Cc", "Zl", "Zp"})
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class CaptionRefusedError(ValueError):
    """One caption that is not accepted; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        """Keep the problem."""
        self.problem = problem
        super().__init__(str(problem))


def read_caption(path: Path) -> str:
    """Return the text of a caption file without the white space around it.

    Raises:
        CaptionRefusedError: the file is not one line of UTF-8 text with a letter or digit in it.
    """
    try:
        data = path.read_bytes()
        if len(data) > _LONGEST_BYTES:
            raise _refused(
                path, f"{len(data)} bytes, too long for a caption", "Shorten it to a few sentences."
            )
        # Windows editors put a byte order mark first; it is no part of the text.
        text = data.decode("utf-8-sig").strip()
    except PermissionError as error:
        raise _refused(path, "may not be read", "Give yourself the right to read it.") from error
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte 0x{data[error.start]:02x} at {error.start})"
        raise _refused(path, what, "Save it as UTF-8.") from error
    if not says_something(text):
        remedy = "Write a caption, or remove the file so that the captioner writes one."
        raise _refused(path, "empty caption", remedy)
    if bad := sorted({sign for sign in text if not _is_printable(sign)}):
        signs = ", ".join("line break" if sign in "\r\n" else f"U+{ord(sign):04X}" for sign in bad)
        raise _refused(path, f"control characters ({signs})", "Put the caption on one plain line.")
    return text


def says_something(caption: str) -> bool:
    """Return whether there is a letter or digit in the caption, of any script."""
    return any(sign.isalnum() for sign in caption)


def put_trigger_first(caption: str, trigger: str) -> tuple[str, Change]:
    """Return the caption with the trigger first and exactly once, and what had to be done.

    The trigger counts where it stands as a word of its own, in capitals or not. A trigger that
    stands elsewhere, stands more than once or is spelt otherwise is taken out and put first; the
    rest of the caption keeps its words.
    """
    word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    found = list(word.finditer(caption))
    if not found:
        return f"{trigger}, {caption}", "trigger added"
    if len(found) == 1 and caption.startswith(trigger):
        return caption, "none"
    rest = tidy(re.sub(r",(?:\s*,)+", ",", word.sub("", caption))).strip(" ,")
    return (f"{trigger}, {rest}" if rest else trigger), "trigger moved first"


def tidy(caption: str) -> str:
    """Return the caption with single spaces and none before a comma or full stop."""
    return re.sub(r" ([,.])", r"\1", " ".join(caption.split()))


def _is_printable(sign: str) -> bool:
    return unicodedata.category(sign) not in _UNPRINTABLE and sign != _REPLACEMENT


def _refused(path: Path, what: str, remedy: str) -> CaptionRefusedError:
    return CaptionRefusedError(Problem(str(path), what, remedy))
