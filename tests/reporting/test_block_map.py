"""The map shows every block once, says what each colour means, and stands alone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from stages.contracts.blocks import BASE, BlockId
from stages.reporting.block_map import (
    STEPS,
    MapStyle,
    describe_block,
    draw_block_map,
    share_is_uncertain,
    wide_columns,
)
from stages.reporting.evidence import BlockResult, Evidence
from tests.reporting.reading import read_markup, with_class

ALONE = MapStyle(8, alone=True, prefix="map")
IN_PAGE = MapStyle(8, alone=False, prefix="wide")


def result(block: BlockId, share: float, spread: float = 0.01) -> BlockResult:
    """Return a present block with an interval around its share."""
    numbers = {"share": share, "share_low": share - spread, "share_high": share + spread}
    return BlockResult(block, present=True, kept=False, numbers=numbers)


def absent(block: BlockId) -> BlockResult:
    """Return a block that the LoRA has no weights for."""
    return BlockResult(block, present=False, kept=False, numbers={})


def test_every_block_is_one_cell(evidence: Evidence) -> None:
    """Counts come from the model; no cell is lost at the end of a row."""
    elements = read_markup(draw_block_map(evidence.blocks, 0.9, "tok", IN_PAGE))
    cells = with_class(elements, "cell")
    assert [cell.attributes["data-block"] for cell in cells] == [
        str(block.block) for block in evidence.blocks
    ]
    assert all(cell.attributes["href"] == f"#{cell.attributes['data-block']}" for cell in cells)
    titles = [e for e in elements if e.tag == "title"]
    assert [cell.text.startswith(title.text) for cell, title in zip(cells, titles, strict=True)]


def test_not_present_looks_and_reads_unlike_no_effect() -> None:
    """The difference that block vectors of other tools lose."""
    results = [result(BlockId("double", 0), 0.0), absent(BlockId("double", 1)), absent(BASE)]
    elements = read_markup(draw_block_map(results, 0.9, "tok", IN_PAGE))
    nothing, missing, base = with_class(elements, "cell")
    assert "s0" in nothing.attributes["class"].split()
    assert "absent" in missing.attributes["class"].split()
    assert "not present" in missing.text
    assert "not present" in base.text
    assert "0.0" in nothing.text


def test_colours_follow_shares() -> None:
    """The largest share has the deepest colour, half of it the middle one, negative another hue."""
    shares = [0.4, 0.2, 0.0, -0.2]
    results = [result(BlockId("single", i), share) for i, share in enumerate(shares)]
    cells = with_class(read_markup(draw_block_map(results, 0.9, "tok", IN_PAGE)), "cell")
    colours = [cell.attributes["class"].split()[1] for cell in cells]
    assert colours == [f"s{STEPS}", f"s{STEPS // 2}", "s0", "n2"]


def test_intervals_are_told_and_doubt_is_marked() -> None:
    """Hover and focus give the interval; a ring marks blocks that may do nothing."""
    sure, unsure = result(BlockId("double", 0), 0.4), result(BlockId("double", 1), 0.004)
    assert not share_is_uncertain(sure)
    assert share_is_uncertain(unsure)
    assert not share_is_uncertain(absent(BASE))
    sentence = describe_block(sure, 0.9).replace("\N{NO-BREAK SPACE}", " ")
    assert sentence == "double.0: 40.0 % of the effect (90 % interval 39.0 to 41.0 %)"
    elements = read_markup(draw_block_map([sure, unsure], 0.9, "tok", IN_PAGE))
    rings = [e for e in with_class(elements, "ring") if "a" in e.ancestors]
    assert len(rings) == 1


def test_the_file_stands_alone_and_is_stable(evidence: Evidence) -> None:
    """README shows it without our style sheet: well-formed XML, own colours for light and dark."""
    drawn = draw_block_map(evidence.blocks, 0.9, 'tok & <b> "x"', ALONE)
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in drawn
    assert "light-dark" not in drawn
    assert "<a " not in drawn
    assert drawn == draw_block_map(evidence.blocks, 0.9, 'tok & <b> "x"', ALONE)


def test_kept_blocks_are_underlined(evidence: Evidence) -> None:
    """The map also shows what the slim file is made of."""
    elements = read_markup(draw_block_map(evidence.blocks, 0.9, "tok", IN_PAGE))
    marks = [e for e in with_class(elements, "kept") if "a" in e.ancestors]
    assert len(marks) == evidence.metrics["slim"]["blocks_kept"]


def test_a_map_without_any_present_block_is_drawn() -> None:
    """Nothing present is a finding, not a division by zero."""
    assert "not present" in draw_block_map([absent(BlockId("double", 0))], 0.9, "tok", IN_PAGE)
    flat = [replace(result(BlockId("double", 0), 0.0))]
    assert "s0" in draw_block_map(flat, 0.9, "tok", IN_PAGE)


@pytest.mark.parametrize(("doubles", "singles", "columns"), [(19, 38, 19), (8, 38, 19), (2, 3, 8)])
def test_columns_suit_the_model(doubles: int, singles: int, columns: int) -> None:
    """FLUX.1 gives three full rows; Flex.1-alpha and tiny models are drawn, too."""
    blocks = [BlockId("double", i) for i in range(doubles)]
    blocks += [BlockId("single", i) for i in range(singles)]
    assert wide_columns([absent(block) for block in [*blocks, BASE]]) == columns
