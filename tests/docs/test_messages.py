"""docs/troubleshooting.md quotes what is printed: every message of its tables exists in the code.

`…` in a quotation stands for what differs from run to run. Messages of DVC's and the system's own
are looked for where they come from.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import dvc
import pytest

from tests.docs.pages import ROOT

PAGE: Final = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
GAP: Final = "…"
_QUOTED: Final = re.compile(r"(?<!`)`([^`]+)`(?!`)|``(.+?)``")
_PLACEHOLDER: Final = re.compile(r"%(?:\.\d+)?[sdfr]|\{[^{}]*\}")
_NO_MESSAGE: Final = frozenset({"completeness_error", "render"})
"""Names in a first column that are no message."""


def quoted_messages() -> list[tuple[str, str]]:
    """Return (section, message) of the first column of every table."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        title = section.partition("\n")[0]
        for row in re.findall(r"^\| (.*?) \| ", section, flags=re.M):
            names = [single or double for single, double in _QUOTED.findall(row)]
            found += [(title, name) for name in names if name not in _NO_MESSAGE]
    return found


def texts_of(path: Path) -> Iterator[str]:
    """Yield the string literals of a module, with a gap where a value goes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield _PLACEHOLDER.sub(GAP, node.value)


@cache
def printed_by_us() -> str:
    """Return all that our code may print, one text a line."""
    modules = [path for top in ("stages", "flows", "mixer") for path in (ROOT / top).rglob("*.py")]
    assert len(modules) > 100
    templates = (ROOT / "stages/reporting/templates").glob("*.html")
    return "\n".join(
        [
            *(text for path in modules for text in texts_of(path)),
            *(path.read_text(encoding="utf-8") for path in templates),
            *(os.strerror(number) for number in range(1, 40)),
        ]
    )


@cache
def printed_by_dvc() -> str:
    """Return all that DVC may print."""
    modules = Path(dvc.__file__).parent.rglob("*.py")
    return "\n".join(text for path in modules for text in texts_of(path))


MESSAGES = quoted_messages()


@pytest.mark.parametrize(("section", "message"), MESSAGES, ids=[text for _, text in MESSAGES])
def test_a_quoted_message_exists(section: str, message: str) -> None:
    """A message that was reworded takes the page along."""
    said = printed_by_dvc() if section == "What DVC says" else printed_by_us()
    assert message.replace("'", "").strip(GAP + " ") in re.sub(f"{GAP}+", GAP, said).replace(
        "'", ""
    )


def test_messages_are_found() -> None:
    """The loop above runs over something, in every section."""
    assert len(MESSAGES) > 45
    assert len({section for section, _ in MESSAGES}) == len(re.findall(r"^## ", PAGE, flags=re.M))
