"""The one Jinja environment: templates are package data, everything is escaped by default."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

import jinja2
from markupsafe import Markup

from stages.reporting import words

_PACKAGE: Final = "stages.reporting"
_FOLDER: Final = "templates"


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
