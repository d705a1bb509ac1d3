"""What is done to a caption: read, set between its template's ends, trigger put first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from stages.contracts.captions import (
    find_trigger,
    is_trigger_first,
    says_something,
    unreadable_characters,
)
from stages.contracts.errors import Problem

_LONGEST_BYTES: Final = 16_384
"""Some hundred times what the text encoders read: a file this long is no caption."""


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
                str(path),
                f"{len(data)} bytes, too long for a caption",
                "Shorten it to a few sentences.",
            )
        # Windows editors put a byte order mark first; it is no part of the text.
        text = data.decode("utf-8-sig")
    except PermissionError as error:
        raise _refused(
            str(path), "may not be read", "Give yourself the right to read it."
        ) from error
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte 0x{data[error.start]:02x} at {error.start})"
        raise _refused(str(path), what, "Save it as UTF-8.") from error
    return check_caption(text, str(path))


def check_caption(text: str, where: str) -> str:
    """Return a person's caption without the white space around it.

    Raises:
        CaptionRefusedError: it is not one readable line with a letter or digit in it.
    """
    text = text.strip()
    if len(text.encode("utf-8", "surrogatepass")) > _LONGEST_BYTES:
        what = f"{len(text)} characters, too long for a caption"
        raise _refused(where, what, "Shorten it to a few sentences.")
    if not says_something(text):
        remedy = "Write a caption, or remove it so that the captioner writes one."
        raise _refused(where, "empty caption", remedy)
    if bad := unreadable_characters(text):
        names = ", ".join("line break" if each in "\r\n" else f"U+{ord(each):04X}" for each in bad)
        raise _refused(where, f"control characters ({names})", "Put the caption on one plain line.")
    return text


def put_trigger_first(caption: str, trigger: str) -> tuple[str, str]:
    """Return the caption with the trigger first and exactly once, and what had to be done.

    The trigger counts where it stands as a word of its own, in capitals or not. A trigger that
    stands elsewhere, stands more than once or is spelt otherwise is taken out and put first; the
    rest of the caption keeps its words.
    """
    found = find_trigger(caption, trigger)
    if not found:
        return f"{trigger}, {caption}", "trigger added"
    if is_trigger_first(caption, trigger):
        return caption, "none"
    rest = caption
    for match in reversed(found):
        rest = rest[: match.start()] + rest[match.end() :]
    rest = tidy(re.sub(r",(?:\s*,)+", ",", rest)).strip(" ,")
    return (f"{trigger}, {rest}" if rest else trigger), "trigger moved first"


def put_between(caption: str, prefix: str, suffix: str) -> tuple[str, list[str]]:
    """Return a generated caption between prefix and suffix, and which of them were added.

    They are joined with spaces; a suffix that begins with a comma takes the place of the
    caption's full stop.
    """
    added = [name for name, text in (("prefix added", prefix), ("suffix added", suffix)) if text]
    if not added:
        return caption, added
    if suffix.lstrip().startswith(","):
        caption = caption.rstrip(" .")
    return tidy(f"{prefix} {caption} {suffix}"), added


def tidy(caption: str) -> str:
    """Return the caption with single spaces and none before a comma or full stop."""
    return re.sub(r" ([,.])", r"\1", " ".join(caption.split()))


def _refused(where: str, what: str, remedy: str) -> CaptionRefusedError:
    return CaptionRefusedError(Problem(where, what, remedy))
