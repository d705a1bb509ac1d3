"""Reads HTML and SVG the way a browser's parser would, far enough for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"img", "input", "meta", "link", "br", "hr"}


@dataclass
class Element:
    """A tag with its attributes and the text directly or indirectly inside it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    ancestors: tuple[str, ...] = field(default=())


class Reader(HTMLParser):
    """Collects elements and complains about tags that do not match."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.mistakes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        names = tuple(element.tag for element in self.open)
        element = Element(tag, {k: v or "" for k, v in attrs}, ancestors=names)
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that closes itself, as in SVG."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Close an element; it must be the last one that was opened."""
        if not self.open or self.open[-1].tag != tag:
            self.mistakes.append(f"</{tag}> closes {[e.tag for e in self.open[-3:]]}")
            return
        self.open.pop()

    def handle_data(self, data: str) -> None:
        """Give text to all open elements."""
        for element in self.open:
            element.text += data


def read_markup(text: str) -> list[Element]:
    """Return all elements of a page, and fail where tags do not match."""
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.mistakes, reader.mistakes[:5]
    assert not reader.open, [element.tag for element in reader.open]
    return reader.elements


def with_class(elements: list[Element], name: str) -> list[Element]:
    """Return the elements that have a class."""
    return [e for e in elements if name in e.attributes.get("class", "").split()]
