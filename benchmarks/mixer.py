"""How long a click in the mixer takes, in the browser, and a picture of its page.

    python -m benchmarks.mixer [--rounds 9] [--picture docs/mixer.jpg]

Needs the results of `make run` and the system's Chromium. A click is timed from the mouse button to
the new numbers and picture on the page.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final

from mixer.server import HOSTS, launch  # before any other import of gradio

# isort: split
from playwright.sync_api import Locator, Page, expect, sync_playwright

from mixer.__main__ import open_session
from mixer.actions import Session
from mixer.page import build_page
from stages.contracts.blocks import BlockId
from stages.runtime.console import prepare_process

_WAIT_MS: Final = 60_000
# Asked at every frame: `expect` asks after 0.1, 0.35, 0.85, 1.85 s, and would time that.
_SHOWS_NUMBERS: Final = (
    "wanted => new RegExp(wanted).test(document.querySelector('#numbers').innerText)"
)
_SHOWS_PICTURE: Final = "before => document.querySelector('#none img').src !== before"


def measure(session: Session, page: Page, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each click, by kind; the page has drawn its first picture."""
    blocks = session.blocks[:rounds]
    whole = len(session.blocks)
    times: dict[str, list[float]] = {}

    def timed(kind: str, click: Callable[[], object], blocks_on: int) -> None:
        start = time.perf_counter()
        click()
        wanted = rf"(?<!\d){blocks_on} of {whole}"  # "50 of 57" is not "0 of 57"
        page.wait_for_function(_SHOWS_NUMBERS, arg=wanted, timeout=_WAIT_MS)
        times.setdefault(kind, []).append(time.perf_counter() - start)

    def switch(block: BlockId) -> Locator:
        stack = page.locator(f"#on-{block.stack}")
        return stack.get_by_label(str(block.index), exact=True)

    for count, block in enumerate(blocks, start=1):
        timed("one block more off", switch(block).uncheck, whole - count)
    for name in ("none", "all"):
        button = page.locator(f"#preset-{name}")
        timed(f"preset `{name}`", button.click, 0 if name == "none" else whole)
    switch(blocks[0]).uncheck()
    expect(page.locator("#numbers")).to_contain_text(f"{whole - 1} of {whole}", timeout=_WAIT_MS)
    prompt = page.get_by_label("Prompt, or your own")
    recommended = sum(value != 0.0 for value in session.presets["recommended"].values())
    timed("preset `recommended`", page.locator("#preset-recommended").click, recommended)
    none = page.locator("#none img").first
    before = none.get_attribute("src") or ""
    prompt.fill("tok, a robot on the left, plain blue background")
    start = time.perf_counter()
    prompt.press("Enter")
    page.wait_for_function(_SHOWS_PICTURE, arg=before, timeout=_WAIT_MS)
    times["a prompt of your own: three pictures"] = [time.perf_counter() - start]
    return times


def report(rounds: int, picture: Path) -> list[str]:
    """Return the table, and write the picture of the page."""
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as executor, sync_playwright() as playwright:
        session = open_session(Path(), [], Path("mixes"), executor)
        loaded = time.perf_counter() - start
        page = build_page(session)
        with socket.create_server((HOSTS[0], 0)) as free:
            port = free.getsockname()[1]
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        shown = browser.new_page(viewport={"width": 1280, "height": 1100})
        shown.goto(launch(page, HOSTS[0], port))
        whole = len(session.blocks)
        expect(shown.locator("#numbers")).to_contain_text(f"{whole} of {whole}", timeout=_WAIT_MS)
        times = {"load the model": [loaded], **measure(session, shown, rounds)}
        shown.mouse.move(0, 0)
        shown.wait_for_timeout(500)
        shown.screenshot(path=picture, type="jpeg", quality=70, full_page=True)
        browser.close()
        page.close(verbose=False)
        executor.submit(session.mixer.close).result()
    return _table(times)


def _table(times: dict[str, list[float]]) -> list[str]:
    rows = [f"| {kind} | {median(each):.1f} s |" for kind, each in times.items()]
    return ["| | median |", "|---|---|", *rows]


def main() -> None:
    """Measure and write to the terminal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--picture", type=Path, default=Path("docs/mixer.jpg"))
    arguments = parser.parse_args()
    prepare_process()
    sys.stdout.write("\n".join(report(arguments.rounds, arguments.picture)) + "\n")


if __name__ == "__main__":
    main()
