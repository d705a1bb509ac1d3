"""A failed stage speaks for itself."""

from __future__ import annotations

import pytest

from flows.failure import failure_message, is_busy

HEAD = ["Running stage 'train':", "> python -m stages.train --out data/train"]
COMMAND = "failed to run: python -m stages.train --out data/train"
DVC_LINE = f"ERROR: failed to reproduce 'train': {COMMAND}, exited with 1"


def message(*stage_lines: str, dvc: str = DVC_LINE) -> str:
    """Return the message for a stage `train` that wrote these lines."""
    return failure_message("train", [*HEAD, *stage_lines, dvc])


def test_own_report_is_the_message_with_all_its_lines() -> None:
    """The list of problems below the first line is not lost, and progress is not in it."""
    lines = ["step 1 of 9", "train: 2 bad files (2 problems):", "  - a.png: cut", "  - b.png: cut"]
    assert message(*lines) == "\n".join(lines[1:])


def test_exception_is_the_message_without_its_traceback() -> None:
    """Of a traceback the last line counts, not the way there."""
    trace = ["Traceback (most recent call last):", '  File "x.py", line 1', "    f()"]
    assert message("step 1", *trace, "ValueError: no block") == "train: ValueError: no block"


def test_report_after_a_handled_traceback_wins() -> None:
    """The last thing said is the reason."""
    trace = ["Traceback (most recent call last):", "  File", "KeyError: 'a'"]
    assert message(*trace, "train: no key a") == "train: no key a"


def test_error_line_of_a_foreign_program_is_found() -> None:
    """A stage may be any command."""
    assert message("loading", "Error: cannot open x", "usage: y").endswith("open x\nusage: y")


def test_unknown_output_shows_its_last_lines() -> None:
    """Without anything that looks like an error, the end of the output must do."""
    text = message(*[f"line {number}" for number in range(30)])
    assert text.startswith("train: line 20\n")
    assert text.endswith("line 29")


@pytest.mark.parametrize(("code", "name"), [("-9", "SIGKILL"), ("137", "SIGKILL"), ("-11", "SEGV")])
def test_signal_is_named(code: str, name: str) -> None:
    """The last progress line of a killed stage is not the reason why it ended."""
    text = message(
        "step 7", dvc=f"ERROR: failed to reproduce 'train': {COMMAND}, exited with {code}"
    )
    assert name in text
    assert "step" not in text


def test_silent_stage_shows_the_reason_of_dvc() -> None:
    """A stage that says nothing still has a command and an exit code."""
    assert message().endswith("exited with 1")


def test_refusal_of_dvc_is_the_message() -> None:
    """A missing output is DVC's to report: the stage itself thought it was done."""
    text = message("done", dvc="ERROR: failed to reproduce 'train': output 'x' does not exist")
    assert text == "train: output 'x' does not exist"


def test_busy_checkout_is_recognised() -> None:
    """Then another dvc owns the outputs, and nothing may be put back over them."""
    busy = ["ERROR: '/x' is busy, it is being blocked by:", "  (PID 7): dvc repro"]
    assert is_busy(busy)
    assert failure_message("train", busy).startswith("train: '/x' is busy")
    assert not is_busy([DVC_LINE])
