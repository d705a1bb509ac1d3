"""The commands that the pages show.

A fence marked `sh run` is run by test_commands.py, and so is what only looks at a finished run
(LOOKING), wherever it stands; every other command, in a fence or in running text, is checked: it
must be one that exists and takes these arguments. Words in capitals stand for what the reader fills
in.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.docs.pages import fences, indented_lines, inline_code, name_of

RUN: Final = "sh run"
SHELLS: Final = ("", "sh", "bash", RUN)
OURS: Final = ("python", "dvc", "make", "prefect")
"""Programs whose commands are parsed, or whose targets are looked up."""
FOREIGN: Final = frozenset(
    {"accelerate", "cat", "cd", "cp", "curl", "dask", "docker", "export", "git", "hf", "kubectl"}
    | {"mkdir", "pip", "rsync", "sed", "sha256sum", "source", "tensorboard"}
)
"""Programs that are not checked beyond what test_commands.py says of cp and pip."""
LOOKING: Final = re.compile(
    r"python -m stages\.split inspect .+|dvc (dag|exp show|metrics|plots|status)\b.*"
)
"""Commands that change nothing and take seconds."""
_ASSIGNMENT: Final = re.compile(r"^[A-Z_]+=")
_COMMENT: Final = re.compile(r"(^|\s{2,})#.*$")
_USAGE: Final = re.compile(r"[\[\]]")
_REDIRECTION: Final = re.compile(r" (?:2?>|\|\|) .*$")


@dataclass(frozen=True)
class Shown:
    """A command on a page; in running text it may be a mere name, without what it needs."""

    page: str
    line: str
    named: bool


def commands_of(text: str) -> list[str]:
    """Return the command lines of a block, comments and continuations resolved."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [_COMMENT.sub("", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def run_blocks(page: Path) -> list[str]:
    """Return the blocks of a page that are run, in order."""
    return [fence.body for fence in fences(page) if fence.info == RUN]


def checked_commands(page: Path) -> list[Shown]:
    """Return the other commands of a page: in fences, in indented blocks, in running text."""
    blocks = [fence.body for fence in fences(page) if fence.info in SHELLS and fence.info != RUN]
    lines = [line for block in blocks for line in commands_of(block)]
    lines += [line for each in indented_lines(page) for line in commands_of(each)]
    shown = {Shown(name_of(page), line, named=False) for line in lines}
    shown |= {Shown(name_of(page), code, named=True) for code in inline_code(page) if " " in code}
    known = {*OURS, *FOREIGN}
    return sorted((one for one in shown if program_of(one.line) in known), key=str)


def program_of(line: str) -> str:
    """Return the program that a command line starts, "" if it is none."""
    words = words_of(line)
    return words[0] if words else ""


def words_of(line: str) -> list[str]:
    """Return a command's words: without assignments before it, brackets of usage and `...`.

    Of alternatives, `kohya|ai-toolkit`, the first.
    """
    try:
        words = shlex.split(_REDIRECTION.sub("", line))
    except ValueError:  # a quotation mark of prose
        return []
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    if words[:1] == ["python"] and words[1:2] != ["-m"]:
        return []
    plain = [_USAGE.sub("", word) for word in words if word not in ("...", "…")]
    return [word.partition("|")[0] if re.fullmatch(r"[\w|-]+", word) else word for word in plain]
