"""No page leads nowhere: links and paths within the repository have their file and heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, inline_code, links, name_of

PATH = re.compile(r"(?:tests|flows|stages|docs|mixer|benchmarks)/[\w./*-]*")
"""A path in running text. NAME stands for any."""
NAMED = [
    (name_of(page), code)
    for page in PAGES
    if page.name != "CHANGELOG.md"  # which tells what was
    for code in inline_code(page)
    if PATH.fullmatch(code)
]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Files exist, pictures included, and so do the headings that anchors name."""
    dead = []
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_every_page_of_docs_is_in_the_index() -> None:
    """A page that nothing leads to is a page that nobody reads."""
    index = ROOT / "docs/README.md"
    led_to = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    pages = set((ROOT / "docs").glob("*.md")) - {index}
    assert len(pages) > 20
    assert not sorted(map(name_of, pages - led_to))


def test_no_picture_is_left_over() -> None:
    """A picture that no page shows is weight that every clone carries."""
    shown = {
        (page.parent / link).resolve() for page in PAGES for link in links(page) if "#" not in link
    }
    pictures = {
        path for path in (ROOT / "docs").iterdir() if path.suffix in (".jpg", ".png", ".svg")
    }
    assert len(pictures) > 5
    assert not sorted(map(name_of, pictures - shown))


def test_paths_in_running_text_exist() -> None:
    """A file that was moved takes along the pages that name it."""
    assert len(NAMED) > 50
    gone = [(page, path) for page, path in NAMED if not any(ROOT.glob(path.replace("NAME", "*")))]
    assert not gone
