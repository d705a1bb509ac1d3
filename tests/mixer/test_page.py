"""The page in a real browser, on the tiny model."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import httpx
import pytest
from playwright.sync_api import Page, expect

from mixer.__main__ import main, open_session
from mixer.actions import Session
from mixer.page import build_page, moving_only
from mixer.server import IN_CONTAINER, launch
from stages.adapters.container import read_container
from stages.adapters.files import read_adapter
from stages.contracts.params import load_params
from tests.browser import keep_screenshot, open_page, require_chromium

WAIT_MS = 30_000


@contextmanager
def served(session: Session) -> Iterator[str]:
    """Yield the address of a session's page."""
    page = build_page(session)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield launch(page, "127.0.0.1", port)
    page.close(verbose=False)


@pytest.fixture
def address(session: Session) -> Iterator[str]:
    """The address of the session's page."""
    with served(session) as address:
        yield address


def source(page: Page, name: str) -> str:
    """Return what a picture on the page is loaded from: a name made of its content."""
    found = page.locator(f"#{name} img").first.get_attribute("src")
    assert found
    return found


def test_a_click_is_a_picture_and_a_mix_becomes_a_file(
    session: Session, project: Path, address: str, tmp_path: Path
) -> None:
    """Open, switch a block off, take a preset, save, add to params; the console stays silent."""
    require_chromium()
    complaints: list[str] = []
    with open_page(address, complaints, keep=tmp_path) as page:
        numbers = page.locator("#numbers")
        expect(numbers).to_contain_text("5 of 5", timeout=WAIT_MS)
        expect(numbers).to_contain_text("100.0%")
        first = {name: source(page, name) for name in ("none", "mix", "full", "map-full")}
        page.locator("#on-double").get_by_label("0", exact=True).uncheck()
        expect(numbers).to_contain_text("4 of 5", timeout=WAIT_MS)
        expect(numbers).to_contain_text("70.0%")
        assert source(page, "none") == first["none"]
        assert source(page, "full") == first["full"]
        assert source(page, "mix") != first["mix"]
        assert source(page, "map-full") != first["map-full"]
        page.locator("#preset-recommended").click()
        expect(numbers).to_contain_text("3 of 5", timeout=WAIT_MS)
        expect(page.locator("#tries img")).to_have_count(3)
        keep_screenshot(page, tmp_path, "mixer.png")
        page.get_by_label("Name of this mix").fill("faces")
        page.locator("#save").click()
        expect(page.locator("#said")).to_contain_text("faces.safetensors", timeout=WAIT_MS)
        page.locator("#add").click()
        expect(page.locator("#said")).to_contain_text("render.subsets", timeout=WAIT_MS)
        page.locator("#tries img").last.click()
        expect(numbers).to_contain_text("5 of 5", timeout=WAIT_MS)
        page.locator("#save").click()
        expect(page.get_by_text("there is such a file")).to_be_visible(timeout=WAIT_MS)
    assert complaints == []
    saved = read_adapter(project / "mixes/faces.safetensors")
    assert [str(block) for block in saved.blocks] == ["double.1", "single.1", "single.2"]
    assert "faces" in load_params(project / "params.yaml").render.subsets


def set_number(page: Page, label: str, value: str) -> None:
    """Type the number of a slider and leave the field."""
    field = page.get_by_label(f"number input for {label}", exact=True)
    field.fill(value)
    field.press("Tab")


def test_every_control_draws_another_picture(address: str) -> None:
    """A block's strength, a band, the prompt, the seed and the steps; shares add up to 100 %."""
    require_chromium()
    complaints: list[str] = []
    with open_page(address, complaints) as page:
        numbers, none = page.locator("#numbers"), page.locator("#none img").first
        expect(numbers).to_contain_text("5 of 5", timeout=WAIT_MS)
        page.locator("#strengths > button").click()
        set_number(page, "double.0", "0.5")
        expect(numbers).to_contain_text("85.0%", timeout=WAIT_MS)
        set_number(page, "double.0", "0")
        expect(numbers).to_contain_text("4 of 5", timeout=WAIT_MS)
        expect(page.locator("#on-double").get_by_label("0", exact=True)).not_to_be_checked()
        page.get_by_label("Band", exact=True).click()
        page.get_by_role("option", name="single", exact=True).click()
        set_number(page, "Strength of the band", "0.2")
        page.locator("#set-band").click()
        expect(numbers).to_contain_text("34.0%", timeout=WAIT_MS)
        for label, value in (
            ("Prompt, or your own", "a blue star"),
            ("Seed", "7"),
            ("Steps", "1"),
        ):
            before = source(page, "none")
            field = page.get_by_label(label, exact=True)
            field.fill(value)
            field.press("Enter")
            expect(none).not_to_have_attribute("src", before, timeout=WAIT_MS)
        expect(page.locator("#tries img")).to_have_count(7)
    assert complaints == []


def test_what_stays_is_not_sent() -> None:
    """The browser sets every slider that it is sent, and a click waits for all of them."""
    halve = moving_only(3, lambda *given: ["on", given[1], given[2] / 2, given[3] / 2])
    assert halve("band", 1.0, 1.0, 0.0) == ["on", gr.skip(), 0.5, gr.skip()]


def test_each_of_two_loras_has_its_strength(project: Path, other: Path) -> None:
    """Another strength is another full picture from the same base, and the saved file has it."""
    require_chromium()
    complaints: list[str] = []
    files = [str(project / "data/train/adapter.safetensors"), f"{other}=0.5"]
    with ThreadPoolExecutor(1) as executor:
        session = open_session(project, files, project / "mixes", executor)
        with served(session) as address, open_page(address, complaints) as page:
            numbers = page.locator("#numbers")
            expect(numbers).to_contain_text("not known", timeout=WAIT_MS)
            none, full = source(page, "none"), source(page, "full")
            set_number(page, f"Strength of {project.name}/other.safetensors", "0.25")
            shown = page.locator("#full img").first
            expect(shown).not_to_have_attribute("src", full, timeout=WAIT_MS)
            assert source(page, "none") == none
            page.get_by_label("Name of this mix").fill("both")
            page.locator("#save").click()
            expect(page.locator("#said")).to_contain_text("other.safetensors", timeout=WAIT_MS)
    assert complaints == []
    metadata = read_container(project / "mixes/both.safetensors").metadata
    assert metadata["blocklens.source_strengths"] == "1,0.25"


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line and exit code 1, in a folder that has not even params.yaml."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as refused:
            main(["--port", port])
    assert refused.value.code == 1
    assert f"127.0.0.1:{port}: cannot be listened on" in caplog.text
    assert "name another with --port" in caplog.text


def test_only_this_machine_is_served(address: str, session: Session) -> None:
    """Not by another address, and not under a name that a foreign page could point here."""
    assert httpx.get(address).status_code == 200
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 400
    with pytest.raises(ValueError, match=r"0\.0\.0\.0 is not this machine alone"):
        launch(build_page(session), "0.0.0.0", 7860)


def listens(address: str, port: int) -> bool:
    """Return whether a connection is taken."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((address, port)) == 0


@pytest.mark.parametrize(("switch", "elsewhere"), [("0", False), ("1", True)])
def test_a_container_says_so_itself(
    switch: str, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then it listens on more than 127.0.0.1, and still answers under this machine's names."""
    monkeypatch.setenv(IN_CONTAINER, switch)
    with gr.Blocks() as page:
        gr.Markdown("here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launch(page, "127.0.0.1", port)
    try:
        assert listens("127.0.0.1", port)
        assert listens("127.0.0.2", port) is elsewhere  # all of 127/8 is this machine
        here = f"http://127.0.0.1:{port}"
        assert httpx.get(here).status_code == 200
        assert httpx.get(here, headers={"Host": "evil.example"}).status_code == 400
    finally:
        page.close(verbose=False)


def test_a_switch_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error must not open the page, nor pass for no switch at all."""
    monkeypatch.setenv(IN_CONTAINER, "yes")
    with gr.Blocks() as page:
        gr.Markdown("here")
    with pytest.raises(ValueError, match="is 'yes': expected 1 in a container, else 0"):
        launch(page, "127.0.0.1", 7860)
