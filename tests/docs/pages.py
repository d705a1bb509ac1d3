"""The Markdown of the repository: its fences, its code in running text, its headings and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docker/*.md", "nano/*.md", "data/weights/*.md")
    for path in ROOT.glob(pattern)
)

_FENCE: Final = re.compile(
    r"^(?P<mark>`{3,}) *(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=mark) *$", re.M | re.S
)
_INLINE: Final = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)|``((?:[^`]|`(?!`))+)``")
_LINK: Final = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#{1,6} +(.+?) *#* *$", re.M)


@dataclass(frozen=True)
class Fence:
    """A block of code: what stands behind its first mark (`sh run`), and its lines."""

    info: str
    body: str


def name_of(page: Path) -> str:
    """Return a page's path as git shows it."""
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> list[Fence]:
    """Return the fenced blocks of a page, in order."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Fence(one["info"].strip(), one["body"]) for one in found]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """Return what stands between backticks in running text, each on one line."""
    found = _INLINE.finditer(prose(page))
    return [" ".join((one[1] or one[2]).split()) for one in found]


def links(page: Path) -> list[str]:
    """Return the targets of all links and pictures, those in code apart."""
    return _LINK.findall(_INLINE.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    seen: dict[str, int] = {}
    return {_numbered(_slug(title), seen) for title in _HEADING.findall(prose(page))}


def indented_lines(page: Path) -> Iterator[str]:
    """Yield the lines of indented blocks."""
    for line in prose(page).splitlines():
        if line.startswith("    "):
            yield line.strip()


def _slug(title: str) -> str:
    """Return GitHub's anchor: lower case, signs dropped, a hyphen for every space."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")


def _numbered(slug: str, seen: dict[str, int]) -> str:
    seen[slug] = seen.get(slug, -1) + 1
    return slug if seen[slug] == 0 else f"{slug}-{seen[slug]}"
