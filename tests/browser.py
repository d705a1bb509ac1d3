"""The system's Chromium, driven by Playwright; a page that complains fails its test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


def require_chromium() -> str:
    """Return the browser's path; without one skip, but fail where CI promised one."""
    if not CHROMIUM and os.environ.get("BLOCKLENS_REQUIRE_BROWSER"):
        pytest.fail("BLOCKLENS_REQUIRE_BROWSER is set, and there is no Chromium")
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    return CHROMIUM


@contextmanager
def open_page(address: str, complaints: list[str], width: int = 1280) -> Iterator[Page]:
    """Yield the page at `address`; errors on its console and requests elsewhere are collected."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": width, "height": 1000})
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.extend(_foreign(request.url, address)))
        try:
            page.goto(address)
            yield page
        finally:
            browser.close()


def _foreign(url: str, address: str) -> list[str]:
    """Return a complaint where a page asks somebody else for something."""
    own = url.startswith((address, "data:", "blob:"))
    return [] if own else [f"asks elsewhere: {url}"]


def keep_screenshot(page: Page, folder: Path, name: str) -> Path:
    """Write what the page shows to `folder` and return the file."""
    path = folder / name
    page.screenshot(path=path, full_page=True)
    return path
