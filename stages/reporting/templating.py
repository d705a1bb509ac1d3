"""The one Jinja environment: templates are package data, everything is escaped by default."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

import jinja2
from markupsafe import Markup

from stages.reporting import words
from stages.reporting.pictures import data_uri

_PACKAGE: Final = "stages.reporting"
_FOLDER: Final = "templates"

FONTS: Final = ("inter", "newsreader")


@cache
def environment() -> jinja2.Environment:
    """Return the environment; an undefined name in a template is an error, not an empty text."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(_PACKAGE, _FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(
        percent=words.percent,
        decimal=words.decimal,
        error=words.error,
        file_size=words.file_size,
        count=words.count,
        agreement=words.agreement,
    )
    return made


def render(template: str, **values: object) -> Markup:
    """Return a template filled with `values`; as markup, so that it can stand in another one."""
    # Markup is right here and nowhere else: the template has escaped every value already.
    return Markup(environment().get_template(template).render(**values))


def asset_text(name: str) -> Markup:
    """Return a file of ours, such as the style sheet, to be put into the page as it is."""
    return Markup((files(_PACKAGE) / _FOLDER / name).read_text(encoding="utf-8"))


def asset_bytes(name: str) -> bytes:
    """Return the bytes of a file of ours, such as a font."""
    return (files(_PACKAGE) / _FOLDER / name).read_bytes()


def font_uri(name: str) -> str:
    """Return one of FONTS as a data URI."""
    return data_uri(asset_bytes(f"{name}.woff2"), "font/woff2")


def script_hash(script: str) -> str:
    """Return the hash by which a page's own policy admits this script and no other."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
