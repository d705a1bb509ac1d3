"""Templates escape what they are given and fail on what they are not."""

from __future__ import annotations

import jinja2
import pytest

from stages.reporting.templating import asset_bytes, asset_text, environment, render


def test_values_are_escaped_once() -> None:
    """A caption is text, a drawn chart is markup."""
    template = environment().from_string("{{ text }}|{{ markup }}")
    markup = asset_text("style.css")[:0] + asset_text("page.js")[:12]
    assert template.render(text="<b>", markup=markup) == '&lt;b&gt;|"use strict"'


def test_undefined_names_are_errors() -> None:
    """An empty place in the page would look like a finding."""
    with pytest.raises(jinja2.UndefinedError):
        render("overview.html")


def test_assets_are_packaged() -> None:
    """Fonts with their licence, style and script travel with the package."""
    assert asset_bytes("inter.woff2")[:4] == asset_bytes("newsreader.woff2")[:4] == b"wOF2"
    assert "SIL Open Font License" in asset_text("fonts-licence.txt").replace(
        "SIL OPEN FONT LICENSE", ""
    )
