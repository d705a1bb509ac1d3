"""Read a Dockerfile: the instructions of each build stage.

The part of the format that ours uses; anything else is an error, so that no instruction is left out
without a word.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KNOWN = (
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "VOLUME",
    "WORKDIR",
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word, its `--flag=value`s, and the rest, continuation lines joined."""

    word: str
    flags: Mapping[str, str]
    rest: str


@dataclass(frozen=True)
class BuildStage:
    """A build stage: its name, what it starts from, and its instructions in order."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]

    def of(self, word: str) -> list[Instruction]:
        """Return the instructions of one word."""
        return [each for each in self.instructions if each.word == word]


def read_dockerfile(path: Path) -> tuple[dict[str, str], dict[str, BuildStage]]:
    """Return the ARGs before the first stage, and the build stages by name."""
    arguments: dict[str, str] = {}
    stages: dict[str, BuildStage] = {}
    for line in _logical_lines(path.read_text(encoding="utf-8")):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            assert name not in stages, name
            stages[name] = BuildStage(name, base, ())
        elif not stages:
            assert word == "ARG", line
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            assert word in KNOWN, line
            last = stages[name := list(stages)[-1]]
            added = (*last.instructions, _instruction(word, rest))
            stages[name] = BuildStage(name, last.base, added)
    return arguments, stages


def words(text: str) -> list[str]:
    """Return the arguments of an instruction in JSON or shell form."""
    return json.loads(text) if text.startswith("[") else shlex.split(text)


def variables(text: str) -> dict[str, str]:
    """Return what an ENV sets."""
    return dict(each.split("=", 1) for each in shlex.split(text))


def ancestry(stages: Mapping[str, BuildStage], name: str) -> list[BuildStage]:
    """Return the stage and those that it starts from, first the one that starts from an image."""
    found = [stages[name]]
    while found[0].base in stages:
        found.insert(0, stages[found[0].base])
    return found


def _logical_lines(text: str) -> list[str]:
    joined = re.sub(r"\\\n(?:\s*#.*\n)*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [line.strip() for line in joined.splitlines() if line.strip()]


def _instruction(word: str, rest: str) -> Instruction:
    flags: dict[str, str] = {}
    if word in ("COPY", "RUN"):
        while match := re.match(r"--([a-z]+)(?:=(\S+))?\s+", rest):
            flags[match[1]] = match[2] or ""
            rest = rest[match.end() :]
    return Instruction(word, flags, rest)
