"""The page is whole: it needs no network, says everything, and believes no caption."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from stages.reporting.evidence import Evidence
from stages.reporting.gallery import HeatmapLook
from stages.reporting.page import veil_opacities, write_page
from tests.reporting.example import EVIL_CAPTION, example_params
from tests.reporting.reading import Element, read_markup, with_class


def flat_map(picture: Path, reference: Path) -> np.ndarray:
    """Return a map without any difference, and check that the files are two."""
    assert picture != reference
    return np.zeros((32, 32), dtype=np.uint8)


LOOK = HeatmapLook(
    flat_map,
    np.linspace(0, 255, 9).astype(np.uint8)[:, None].repeat(3, axis=1),
    top=50.0,
    opacity=0.6,
    shared=True,
)


@pytest.fixture(scope="module")
def html(evidence: Evidence) -> str:
    """The report of the example."""
    return write_page(evidence, example_params(), LOOK).html


@pytest.fixture(scope="module")
def elements(html: str) -> list[Element]:
    """Its elements; tags match."""
    return read_markup(html)


def test_nothing_is_loaded_from_anywhere(html: str, elements: list[Element]) -> None:
    """It works from a file URL on a plane, and calls nobody."""
    for element in elements:
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            value = element.attributes.get(name, "#")
            assert value.startswith(("#", "data:")), f"{element.tag} {name}={value[:60]}"
    assert not [e for e in elements if e.tag in {"link", "iframe", "object", "embed"}]
    assert re.findall(r"url\((?!#|data:)[^)]{0,40}", html) == []
    assert re.findall(r"@import|\bfetch\(|XMLHttpRequest|WebSocket", html) == []


def test_its_own_policy_forbids_the_network_and_foreign_scripts(
    html: str, elements: list[Element]
) -> None:
    """Even a caption that got through could neither run nor call home."""
    policy = next(e for e in elements if "http-equiv" in e.attributes).attributes["content"]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [name for e in elements for name in e.attributes if name.startswith("on")]


def test_captions_are_text(html: str, elements: list[Element]) -> None:
    """A script in a caption is shown, not run."""
    assert "<script>alert" not in html
    assert sum(e.tag == "script" for e in elements) == 1
    captions = [e.text for e in with_class(elements, "caption")]
    assert EVIL_CAPTION in captions
    assert EVIL_CAPTION in [unescape(e.attributes["alt"]) for e in elements if e.tag == "img"]


def test_every_section_is_there_and_named(elements: list[Element]) -> None:
    """The navigation leads to each of them, and each is labelled by its heading."""
    ids = Counter(e.attributes["id"] for e in elements if "id" in e.attributes)
    assert max(ids.values()) == 1, [name for name, count in ids.items() if count > 1]
    sections = [e.attributes for e in elements if e.tag == "section"]
    assert [s["id"] for s in sections] == [
        "overview",
        "map",
        "blocks",
        "ranking",
        "slim",
        "training",
        "dataset",
        "provenance",
    ]
    assert all(s["aria-labelledby"] in ids for s in sections)
    targets = {e.attributes["href"][1:] for e in elements if e.tag == "a"}
    unknown = targets - set(ids)
    assert unknown <= {"single.1", "base"}, "only blocks without a card have no place to go to"


def test_every_picture_says_what_it_shows(elements: list[Element]) -> None:
    """Alt texts, and labels on everything that can be pressed or moved."""
    pictures = [e for e in elements if e.tag == "img"]
    assert len(pictures) > 100
    assert all(e.attributes["alt"].strip() for e in pictures)
    for element in elements:
        if element.tag == "button":
            pictured = element.attributes.get("class") == "zoom"  # its picture's alt names it
            assert pictured or element.text.strip() or element.attributes.get("aria-label")
        if element.tag in {"input", "select"}:
            assert element.attributes.get("aria-label") or "label" in element.ancestors


def test_all_blocks_are_on_both_maps_and_present_ones_in_gallery_and_table(
    evidence: Evidence, elements: list[Element]
) -> None:
    """Counts come from the model, and nothing is dropped on the way."""
    assert len(with_class(elements, "cell")) == 2 * len(evidence.blocks)
    names = [str(result.block) for result in evidence.ranked]
    assert [e.attributes["data-block"] for e in with_class(elements, "card")] == names
    rows = [e for e in elements if e.tag == "th" and "data-value" in e.attributes]
    assert [e.text.replace("kept when slim", "").strip() for e in rows] == names
    assert any(
        "Not present in this LoRA" in e.text and "single.1, base" in e.text
        for e in with_class(elements, "note")
    )


def test_one_view_of_the_gallery_is_open(elements: list[Element]) -> None:
    """Without JavaScript there is still one picture per block, not eight."""
    shots = with_class(elements, "shot")
    assert len(shots) == 6 * 8
    assert sum("hidden" not in e.attributes for e in shots) == 6


def test_numbers_are_sortable(elements: list[Element]) -> None:
    """Each cell carries the number that it sorts by, not the text it shows."""
    cells = [e for e in elements if e.tag == "td" and e.attributes.get("class") != "score"]
    assert len(cells) == 6 * 10
    for cell in cells:
        float(cell.attributes["data-value"])


def test_page_is_byte_stable_and_says_no_time(evidence: Evidence, html: str) -> None:
    """DVC compares bytes, and a report of the same run is the same report."""
    assert write_page(evidence, example_params(), LOOK).html == html
    assert "/tmp/" not in html
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", html)


def test_anecdotes_are_labelled(evidence: Evidence) -> None:
    """On the first screen, not in a footnote."""
    single = {**evidence.metrics["evaluate"], "prompts": 1, "seeds": 1}
    page = write_page(
        replace(evidence, metrics={**evidence.metrics, "evaluate": single}), example_params(), LOOK
    )
    labels = with_class(read_markup(page.html), "anecdotal")
    assert len(labels) == 1
    assert "section" in labels[0].ancestors


def test_block_map_file_is_the_same_map(evidence: Evidence, html: str) -> None:
    """The README shows what the report shows."""
    page = write_page(evidence, example_params(), LOOK)
    assert page.block_map.startswith("<svg xmlns=")
    assert page.block_map.count('class="cell') == len(evidence.blocks)


def test_veil_goes_from_the_picture_to_the_bare_map() -> None:
    """0 shows the picture, 1 the map; in between, change is seen before its surroundings fade."""
    assert set(veil_opacities(0.0)) == {0.0}
    assert set(veil_opacities(1.0)) == {1.0}
    middle = veil_opacities(0.6)
    assert middle[0] == 0.0
    assert middle == sorted(middle)
    assert middle[-1] > 0.8
