"""The system's Chromium, driven by Playwright; a page that complains fails its test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import ConsoleMessage, Error, Page, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
AXE = Path(__file__).parent / "axe-core" / "axe.min.js"
"""The accessibility checker; its version and source stand in the README beside it."""

SCREENS_VARIABLE = "BLOCKLENS_SCREENS"
"""Folder for every screenshot of a test, one folder per test; CI keeps it with its log."""

Scheme = Literal["light", "dark"]


def require_chromium() -> str:
    """Return the browser's path; without one skip, but fail where CI promised one."""
    if not CHROMIUM and os.environ.get("BLOCKLENS_REQUIRE_BROWSER"):
        pytest.fail("BLOCKLENS_REQUIRE_BROWSER is set, and there is no Chromium")
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    return CHROMIUM


@contextmanager
def open_page(
    address: str,
    complaints: list[str],
    width: int = 1280,
    scheme: Scheme = "light",
    keep: Path | None = None,
) -> Iterator[Page]:
    """Yield the page at `address`; errors on its console and requests elsewhere are collected.

    What a test that fails has on the screen is kept: see `screens_of` for the folder `keep`.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
        page.on("console", lambda said: complaints.extend(_errors(said)))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.extend(_foreign(request.url, address)))
        try:
            page.goto(address)
            yield page
        except BaseException:
            if keep is not None:
                with suppress(Error):  # the page itself may be what failed
                    page.screenshot(path=screens_of(keep) / "failed.png")
            raise
        finally:
            browser.close()


@contextmanager
def silent_page(
    file: Path, keep: Path, width: int = 1280, scheme: Scheme = "light"
) -> Iterator[Page]:
    """Yield the page in a file; it must not complain. A failed test's screen is kept in `keep`."""
    complaints: list[str] = []
    with open_page(file.as_uri(), complaints, width, scheme, keep) as page:
        yield page
        assert complaints == []


def _errors(said: ConsoleMessage) -> list[str]:
    """Return what a page says on its console, if it is an error."""
    return [said.text] if said.type == "error" else []


def _foreign(url: str, address: str) -> list[str]:
    """Return a complaint where a page asks somebody else for something."""
    own = url.startswith((address, "data:", "blob:"))
    return [] if own else [f"asks elsewhere: {url}"]


def screens_of(folder: Path) -> Path:
    """Return where a test's screenshots go: `folder`, or one of its name in $BLOCKLENS_SCREENS."""
    kept = os.environ.get(SCREENS_VARIABLE)
    place = Path(kept).resolve() / folder.name if kept else folder
    place.mkdir(parents=True, exist_ok=True)
    return place


def keep_screenshot(page: Page, folder: Path, name: str) -> Path:
    """Write what the whole page shows to the screens of `folder` and return the file."""
    path = screens_of(folder) / name
    page.screenshot(path=path, full_page=True)
    return path


@cache
def _axe() -> str:
    return AXE.read_text(encoding="utf-8")


def barriers(page: Page) -> list[str]:
    """Return what axe-core finds serious or critical on the page as it is, places included."""
    page.evaluate(_axe())
    found: Sequence[dict[str, object]] = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations.map("
        "({id, impact, nodes}) => ({id, impact, places: nodes.map((node) => node.target.join(' '))"
        ".slice(0, 5).join(', ')})))"
    )
    return [
        f"{one['id']}: {one['places']}" for one in found if one["impact"] in {"serious", "critical"}
    ]


def coarse(picture: Path, width: int = 64) -> npt.NDArray[np.float64]:
    """Return the luminance of a screenshot in cells, each the mean of about 20 × 20 pixels.

    Another Chromium draws letters a little differently; in cells of this size that is lost, and a
    moved line, a missing picture or a wrong colour is not.
    """
    with Image.open(picture) as image:
        grey = image.convert("L")
        size = (width, round(width * grey.height / grey.width))
        return np.asarray(grey.resize(size, Image.Resampling.BOX), dtype=np.float64)
