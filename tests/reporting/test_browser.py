"""The report in a real browser: it is used as a person uses it, by mouse, by keyboard, on a phone.

A failing test keeps what was on the screen as failed.png: tests.browser.screens_of says where.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from stages.contracts.params import Params
from stages.report import report
from stages.reporting.evidence import Evidence
from tests.browser import (
    SCREENS_VARIABLE,
    Scheme,
    barriers,
    coarse,
    require_chromium,
    screens_of,
    silent_page,
)
from tests.reporting.example import example_folders, example_params

SCREENS = Path(__file__).parent / "screens"
MEAN_TOLERANCE = 3.0
"""Grey levels by which the first screen may differ from the committed one, on average."""

CELL_TOLERANCE = 48.0
"""And in any of its cells: one word more or less in a cell of 20 × 20 pixels."""

LOOKS: list[tuple[str, int, Scheme]] = [
    ("light", 1280, "light"),
    ("dark", 1280, "dark"),
    ("phone", 390, "light"),
]


@pytest.fixture(scope="module")
def page_file(example_data: Path) -> Path:
    """The example's report, as the stage writes it and where: beside the pictures."""
    require_chromium()
    params = example_params()
    out = example_data / "report"
    sections = [getattr(params, name) for name in Params.model_fields]
    report(*sections, out=out, **example_folders(example_data))
    return out / "index.html"


def blocks(cards: Locator) -> list[str]:
    """Return the names of the cards that are shown, in their order."""
    names = cards.evaluate_all("all => all.filter(c => !c.hidden).map(c => c.dataset.block)")
    return [str(name) for name in names]


def picture_of(target: Locator, path: Path) -> np.ndarray:
    """Return what an element looks like, in colour."""
    target.screenshot(path=path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def test_the_slider_moves_by_mouse_and_by_keyboard(page_file: Path, tmp_path: Path) -> None:
    """Dragging to a side shows the other picture there; arrow keys do the same."""
    with silent_page(page_file, tmp_path) as page:
        figure = page.locator("#overview .compare").first
        slider = figure.locator("input")
        box = figure.bounding_box()
        assert box is not None
        split = figure.locator(".left")
        middle = split.evaluate("e => getComputedStyle(e).clipPath")
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
        assert int(slider.input_value()) < 25
        assert split.evaluate("e => getComputedStyle(e).clipPath") != middle
        dragged = int(slider.input_value())
        slider.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        assert int(slider.input_value()) == dragged + 5
        page.keyboard.press("End")
        with_base = picture_of(figure, tmp_path / "base.png")
        page.keyboard.press("Home")
        with_lora = picture_of(figure, tmp_path / "lora.png")
        assert np.abs(with_base - with_lora).mean() > 1.0


def test_another_prompt_is_shown_where_it_is_asked_for(page_file: Path, tmp_path: Path) -> None:
    """The numbered buttons change the comparison, and say which one is on."""
    with silent_page(page_file, tmp_path) as page:
        first = page.locator("#overview figcaption:visible").inner_text()
        page.locator("[data-show]").nth(1).click()
        expect(page.locator("[data-show]").nth(1)).to_have_attribute("aria-pressed", "true")
        assert page.locator("#overview figcaption:visible").inner_text() != first
        assert page.locator("#overview .comparison:visible").count() == 1


def test_sorting_sorts_and_filters_filter(
    page_file: Path, tmp_path: Path, evidence: Evidence
) -> None:
    """In the gallery by its lists, in the table by a click on a heading."""
    with silent_page(page_file, tmp_path) as page:
        cards = page.locator("#gallery .card")
        by_share = [str(each.block) for each in evidence.ranked]
        assert blocks(cards) == by_share
        page.select_option("#sort", "order")
        in_order = [str(each.block) for each in evidence.present]
        assert blocks(cards) == in_order
        page.select_option("#sort", "mse")
        shots = "all => all.map(c => Number([...c.querySelectorAll('.shot')].find(s => !s.hidden)"
        errors = cards.evaluate_all(shots + ".dataset.mse))")
        assert errors == sorted(errors, reverse=True)
        page.select_option("#sort", "share")
        page.select_option("#filter", "single")
        assert blocks(cards) == [name for name in by_share if name.startswith("single")]
        page.select_option("#filter", "kept")
        assert len(blocks(cards)) == evidence.metrics["slim"]["blocks_kept"]
        names = page.locator("#ranking-table tbody th a")
        assert names.all_inner_texts() == by_share
        headings = page.locator("#ranking-table thead button")
        headings.nth(1).click()
        assert names.all_inner_texts() == in_order
        headings.nth(2).click()
        expect(page.locator("#ranking-table thead th").nth(2)).to_have_attribute(
            "aria-sort", "descending"
        )
        assert names.all_inner_texts() == by_share
        headings.nth(2).click()
        assert names.all_inner_texts() == by_share[::-1]


def test_the_heat_map_is_laid_over_and_stretched(page_file: Path, tmp_path: Path) -> None:
    """From the picture to the bare map; on the scale of all blocks, or each on its own."""
    with silent_page(page_file, tmp_path) as page:
        shot = page.locator("#gallery .card .shot:visible").last
        slider = page.locator("#overlay")

        def look(opacity: str) -> np.ndarray:
            slider.fill(opacity)
            return picture_of(shot, tmp_path / f"overlay-{opacity}.png")

        bare, half, full = look("0"), look("60"), look("100")
        assert np.abs(bare - full).mean() > np.abs(bare - half).mean() > 0.0
        expect(page.locator("#scale [data-own]").first).to_be_hidden()
        page.locator("#own-scale").check()
        expect(page.locator("#scale [data-own]").first).to_be_visible()
        assert np.abs(picture_of(shot, tmp_path / "own.png") - full).mean() > 0.0


def test_blocks_side_by_side_are_faded_where_they_are_compared(
    page_file: Path, tmp_path: Path
) -> None:
    """The dialog shuts the page's controls out: it has its own, by keyboard, and both agree."""
    with silent_page(page_file, tmp_path) as page:
        page.locator("#gallery .open").first.click()
        page.get_by_label("Beside it").select_option(index=2)
        shot = page.locator("#detail .shot").first

        def look(name: str) -> np.ndarray:
            page.mouse.move(0, 0)
            return picture_of(shot, tmp_path / f"{name}.png")

        before = look("before")
        page.get_by_label("Beside it").focus()
        page.keyboard.press("Tab")
        expect(page.locator("#detail-overlay")).to_be_focused()
        page.keyboard.press("Home")
        bare = look("bare")
        page.keyboard.press("End")
        full = look("full")
        assert np.abs(bare - full).mean() > np.abs(bare - before).mean() > 0.0
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert np.abs(look("own") - full).mean() > 0.0
        page.get_by_label("Beside it").select_option("")
        page.keyboard.press("Escape")
        expect(page.locator("#overlay")).to_have_value("100")
        expect(page.locator("#own-scale")).to_be_checked()
        page.locator("#own-scale").uncheck()
        expect(page.locator("#detail-own-scale")).not_to_be_checked()


def test_every_place_that_tells_a_share_tells_its_rank_interval(
    page_file: Path, tmp_path: Path
) -> None:
    """The card, the panel beside the map and the dialog, with the ranks of the table."""
    with silent_page(page_file, tmp_path) as page:
        rows = page.locator("#ranking-table tbody tr").all()[:3]
        for row in rows:
            name = row.locator("th a").inner_text()
            rank = f"rank {row.locator('td.places').inner_text()}"
            card = page.locator(f'.card[data-block="{name}"]')
            expect(card.locator(".places")).to_have_text(rank)
            page.locator(f'.map-frame.wide-only a[data-block="{name}"]').hover()
            told = re.compile(rf"%\), {rank}$")
            expect(page.locator("#inspector [data-field=sentence]")).to_have_text(told)
            card.locator(".open").click()
            expect(page.locator(".detail-numbers")).to_have_text(told)
            page.keyboard.press("Escape")


def test_the_map_tells_intervals_on_hover_and_on_focus(
    page_file: Path, tmp_path: Path, evidence: Evidence
) -> None:
    """Without a mouse, too: arrow keys move, Enter opens the pictures, Escape closes them."""
    with silent_page(page_file, tmp_path) as page:
        told = page.locator("#inspector [data-field=sentence]")
        cells = page.locator(".map-frame.wide-only a.cell")
        present = [str(each.block) for each in evidence.present]
        cells.nth(1).hover()
        expect(told).to_contain_text(present[1])
        expect(told).to_contain_text("90\N{NO-BREAK SPACE}% interval")
        cells.first.focus()
        expect(told).to_contain_text(present[0])
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        where = page.evaluate("document.activeElement.dataset.block")
        assert where.startswith("single.")
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        expect(page.locator("#detail-name")).to_have_text(present[0])
        page.keyboard.press("Escape")
        expect(page.locator("#detail")).to_be_hidden()


def test_a_picture_opens_in_full_size_and_escape_leads_back(
    page_file: Path, tmp_path: Path
) -> None:
    """First all pictures of a block, then one of them; Escape closes one at a time."""
    with silent_page(page_file, tmp_path) as page:
        page.locator("#gallery .open").first.click()
        small = page.locator("#detail .zoom").nth(1)
        expect(small).to_be_visible()
        before = small.bounding_box()
        small.click()
        large = page.locator("#full .full-pictures > *")
        expect(large).to_have_count(1)
        after = large.bounding_box()
        assert before is not None
        assert after is not None
        assert after["width"] > 1.5 * before["width"]
        expect(page.locator("#full-words")).to_contain_text("32 × 32 pixels here, in full in data/")
        with page.expect_popup() as opened:
            page.locator("#full-words a").click()
        assert opened.value.evaluate("document.images[0].naturalWidth") == 32
        opened.value.close()
        page.keyboard.press("Escape")
        expect(page.locator("#full")).to_be_hidden()
        expect(page.locator("#detail")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#detail")).to_be_hidden()
        page.locator("#overview .enlarge").first.click()
        expect(large).to_have_count(2)
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#full")).to_be_hidden()
        page.locator("#dataset .zoom").first.click()
        expect(page.locator("#full-words")).to_contain_text("32 × 32 pixels")


def test_two_blocks_stand_side_by_side(page_file: Path, tmp_path: Path, evidence: Evidence) -> None:
    """In one row, each under its own name; and back to one."""
    first, second = (str(each.block) for each in evidence.ranked[:2])
    with silent_page(page_file, tmp_path) as page:
        page.locator("#gallery .open").first.click()
        page.get_by_label("Beside it").select_option(second)
        expect(page.locator("#detail-name")).to_have_text(f"{first} and {second}")
        figures = page.locator("#detail .detail-pair").first.locator("figure")
        captions = figures.locator("figcaption").all_inner_texts()
        assert captions[:2] == ["without LoRA", "with LoRA"]
        starts = [f"{first} alone", f"{second} alone", f"{first} without", f"{second} without"]
        assert [c.startswith(s) for c, s in zip(captions[2:], starts, strict=True)] == [True] * 4
        left, right = figures.nth(2).bounding_box(), figures.nth(3).bounding_box()
        assert left is not None
        assert right is not None
        assert left["y"] == right["y"]
        assert left["x"] < right["x"]
        page.get_by_label("Beside it").select_option("")
        expect(page.locator("#detail-name")).to_have_text(first)
        assert figures.count() == 4


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKS, ids=[look[0] for look in LOOKS])
def test_nothing_stands_in_the_way(
    page_file: Path, tmp_path: Path, name: str, width: int, scheme: Scheme
) -> None:
    """axe-core finds nothing serious or critical, with the dialogs open either."""
    with silent_page(page_file, tmp_path, width, scheme) as page:
        for summary in page.locator("summary").all():
            summary.click()
        assert barriers(page) == []
        page.locator("#gallery .open").first.click()
        page.locator("#detail .zoom").first.click()
        assert barriers(page) == []
        wide = "document.documentElement.scrollWidth"
        assert page.evaluate(wide) == width, "it scrolls sideways"


def test_the_checker_finds_what_is_wrong(page_file: Path, tmp_path: Path) -> None:
    """A picture without words and grey on grey are found, or the test above says nothing."""
    with silent_page(page_file, tmp_path) as page:
        page.evaluate(
            "document.querySelector('#dataset img').removeAttribute('alt');"
            "document.querySelector('.lede').style.color = '#ddd'"
        )
        assert [found.split(":")[0] for found in barriers(page)] == [
            "button-name",
            "color-contrast",
            "image-alt",
        ]


def test_a_failed_test_keeps_its_screen(
    page_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own folder, or where BLOCKLENS_SCREENS says, so that CI can hand it out."""
    for folder in (tmp_path, tmp_path / "screens" / tmp_path.name):
        with pytest.raises(AssertionError, match="as meant"), silent_page(page_file, tmp_path):
            raise AssertionError("as meant")
        assert (folder / "failed.png").stat().st_size > 10_000
        monkeypatch.setenv(SCREENS_VARIABLE, str(tmp_path / "screens"))


def test_the_keyboard_alone_is_enough(page_file: Path, tmp_path: Path) -> None:
    """The first key leads to the content, and whatever has the focus is seen to have it."""
    with silent_page(page_file, tmp_path) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the report")).to_be_focused()
        seen = set()
        for _ in range(14):
            page.keyboard.press("Tab")
            ring = page.evaluate(
                "(() => { const on = document.activeElement, area = on.closest('.compare') || on;"
                "return [on.tagName, getComputedStyle(area).outlineStyle] })()"
            )
            assert ring[1] != "none", ring
            seen.add(ring[0])
        assert {"A", "BUTTON", "INPUT"} <= seen


def test_it_respects_what_a_reader_has_set(page_file: Path, tmp_path: Path) -> None:
    """No motion where none is wanted; on paper everything is there, and no buttons."""
    with silent_page(page_file, tmp_path) as page:
        scrolling = "getComputedStyle(document.documentElement).scrollBehavior"
        assert page.evaluate(scrolling) == "smooth"
        page.emulate_media(reduced_motion="reduce")
        assert page.evaluate(scrolling) == "auto"
        background = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(background)
        page.locator("#theme").click()
        assert page.evaluate(background) != light
        page.emulate_media(media="print")
        assert page.evaluate(background) == light
        expect(page.locator("header.bar")).to_be_hidden()
        expect(page.locator(".toolbar")).to_be_hidden()
        expect(page.locator(".settings")).to_be_visible()


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKS, ids=[look[0] for look in LOOKS])
def test_the_first_screen_looks_as_it_did(
    page_file: Path, tmp_path: Path, name: str, width: int, scheme: Scheme
) -> None:
    """Compared coarsely with a committed one: see `coarse` for why, and what it still notices."""
    with silent_page(page_file, tmp_path, width, scheme) as page:
        page.evaluate("document.fonts.ready")
        taken = screens_of(tmp_path) / f"{name}.png"
        page.screenshot(path=taken)
        now = coarse(taken)
        then = coarse(SCREENS / f"{name}.png")
        meant = f"If it is meant: cp {taken} {SCREENS / name}.png"
        assert now.shape == then.shape, meant
        off = np.abs(now - then)
        assert off.mean() < MEAN_TOLERANCE, meant
        assert off.max() < CELL_TOLERANCE, meant
        page.evaluate("document.querySelector('h1').remove()")
        page.screenshot(path=tmp_path / "changed.png")
        changed = np.abs(coarse(tmp_path / "changed.png") - then)
        assert changed.mean() > MEAN_TOLERANCE or changed.max() > CELL_TOLERANCE


def read_answers(page: Page) -> dict[str, str]:
    """Return what the page answers to each question, as a person reads it."""
    panels = page.locator(".answers > div").all()
    texts = [panel.inner_text().replace("\N{NO-BREAK SPACE}", " ") for panel in panels]
    return {text.partition("\n")[0]: text.partition("\n")[2].strip() for text in texts}


def test_a_stranger_reads_the_answers_off_the_page(
    page_file: Path, tmp_path: Path, example_data: Path
) -> None:
    """What matters most, how sure that is, how big slim is, what it lost: by the tables, too."""
    with silent_page(page_file, tmp_path) as page:
        said = read_answers(page)
        ranges = page.locator("#ranking-table td.places").all_inner_texts()
    table = pd.read_csv(example_data / "evaluate/blocks.csv").sort_values(
        "share", ascending=False, kind="stable"
    )
    rows = re.findall(
        r"(\S+\.\d+)\s+(−?[\d.]+) %\s+(−?[\d.]+) to (−?[\d.]+) %, rank (\d+)(?: to (\d+))?",
        said["Which 5 blocks matter most?"],
    )
    assert [row[0] for row in rows] == table["block"].head(5).tolist()
    for row, (_, truth) in zip(rows, table.iterrows(), strict=False):
        numbers = [float(text.replace("−", "-")) for text in row[1:4]]
        expected = [100 * truth[key] for key in ("share", "share_low", "share_high")]
        assert numbers == pytest.approx(expected, abs=0.051)
        above = (table["share_low"] > truth["share_high"]).sum()
        below = (table["share_high"] < truth["share_low"]).sum()
        assert [int(row[4]), int(row[5] or row[4])] == [1 + above, len(table) - below]
    assert len(ranges) == len(table)
    assert "interval" in said["How sure is that?"]
    slim = pd.read_json(example_data / "slim/metrics.json", typ="series")
    size = re.match(r"([\d.]+) kB", said["How big is the slim file?"])
    assert size is not None
    assert float(size[1]) == pytest.approx(slim["bytes"] / 1000, abs=0.06)
    lost = re.findall(r"(\d+) %", said["What did it lose?"])
    assert [int(text) for text in lost] == [
        round(100 * (1 - slim["recovery"])),
        round(100 * (1 - slim["recovery_low"])),
        95,
    ]
