"""The message of a failed stage, found in what it and DVC wrote."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Final

SHOWN_LINES: Final = 10
"""Without a recognisable message, a failure shows this many last lines of the stage."""

_DVC_ERROR = re.compile(r"^ERROR: (?:failed to reproduce '[^']*': )?(?P<reason>.*)$")
_EXIT = re.compile(r"failed to run: .*, exited with (?P<code>-?\d+)$", re.DOTALL)
_TRACEBACK = "Traceback (most recent call last):"
_ERROR_WORD = re.compile(r"^(error|fatal)\b", re.IGNORECASE)
_BUSY = "it is being blocked by"


def failure_message(stage: str, lines: Sequence[str]) -> str:
    """Return why a stage failed, in its own words, beginning with its name.

    That is, whichever comes last: the lines from `STAGE: ...` on (how our stages report), from
    the exception of a Python traceback on, or from `error...` on; else its last lines. Where a
    signal ended the stage, or DVC refused before or after it, that is said instead.
    """
    stage_lines, reason = _split_off_dvc(lines)
    exit_match = _EXIT.search(reason)
    if reason and not exit_match:
        text = reason
    elif exit_match and (number := _signal_of(int(exit_match["code"]))):
        text = _killed(number)
    else:
        text = _own_words(stage, stage_lines) or reason or "failed without a message"
    return text if text.startswith(f"{stage}: ") else f"{stage}: {text}"


def is_busy(lines: Sequence[str]) -> bool:
    """Return whether DVC refused because another process runs this stage or a neighbour."""
    return any(_BUSY in line for line in lines)


def _split_off_dvc(lines: Sequence[str]) -> tuple[list[str], str]:
    """Return the stage's own lines, and DVC's reason, which comes last and may be empty."""
    starts = [index for index, line in enumerate(lines) if line.startswith("Running stage '")]
    begin = starts[0] + 1 if starts else 0
    body = [line for line in lines[begin:] if not line.startswith("> ")]
    for index in range(len(body) - 1, -1, -1):
        if match := _DVC_ERROR.match(body[index]):
            rest = [match["reason"], *body[index + 1 :]]
            return body[:index], "\n".join(rest).strip()
    return body, ""


def _own_words(stage: str, lines: Sequence[str]) -> str:
    start = max(0, len(lines) - SHOWN_LINES)
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        if line.startswith(f"{stage}: ") or _ERROR_WORD.match(line):
            start = index
            break
        if line == _TRACEBACK:
            flush = (i for i in range(index + 1, len(lines)) if not lines[i].startswith(" "))
            start = next(flush, index)
            break
    return "\n".join(lines[start:]).strip()


def _signal_of(exit_code: int) -> signal.Signals | None:
    """Return the signal behind an exit code: -N from DVC's own child, 128 + N through a shell."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return signal.Signals(number) if number in set(signal.Signals) else None


def _killed(number: signal.Signals) -> str:
    hint = " (often for want of memory)" if number is signal.SIGKILL else ""
    return f"killed by {number.name}{hint}"
