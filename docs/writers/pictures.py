"""The pictures of docs/reading-the-report.md, cut from a real report in the system's Chromium.

Run `python -m docs.writers.pictures` after `dvc repro`.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Page

from tests.browser import open_page

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "docs"
LARGEST_BYTES: Final = 100_000
SECTIONS: Final = {"overview": 620, "map": 1420, "blocks": 740, "ranking": 620, "slim": 640}
"""Section of the page -> how much of it is shown, in pixels from its top."""
_WIDTH_PX: Final = 1280
_SHOWN_PX: Final = 1000
_MARGIN_PX: Final = 16
_QUALITIES: Final = range(85, 40, -5)


def picture_of(page: Page, section: str, height_px: int) -> bytes:
    """Return the top of a section as JPEG, in the best quality that is small enough."""
    place = page.locator(f"#{section}")
    place.scroll_into_view_if_needed()
    page.wait_for_function(
        "(at) => [...at.querySelectorAll('img')].every((p) => p.complete || !p.offsetParent)",
        arg=place.element_handle(),
    )
    box = place.bounding_box()
    if box is None:
        raise SystemExit(f"the report shows no section {section}")
    taken = page.screenshot(
        full_page=True,
        animations="disabled",
        clip={
            "x": max(0.0, box["x"] - _MARGIN_PX),
            "y": box["y"] + page.evaluate("scrollY"),
            "width": box["width"] + 2 * _MARGIN_PX,
            "height": min(float(height_px), box["height"]),
        },
    )
    top = Image.open(io.BytesIO(taken)).convert("RGB")
    small = top.resize(
        (_SHOWN_PX, round(top.height * _SHOWN_PX / top.width)), Image.Resampling.LANCZOS
    )
    for quality in _QUALITIES:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() < LARGEST_BYTES:
            break
    return file.getvalue()


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=ROOT / "data/report/index.html")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    with open_page(arguments.report.resolve().as_uri(), [], _WIDTH_PX) as page:
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        page.add_style_tag(content=".bar, .toolbar { position: static !important }")
        for section, height_px in SECTIONS.items():
            picture = picture_of(page, section, height_px)
            (arguments.out / f"report-{section}.jpg").write_bytes(picture)


if __name__ == "__main__":
    main()
