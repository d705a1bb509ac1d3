"""Pages that are written by a command are those that the command writes now."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from docs.writers import formats, parameters
from stages.contracts.params import Params
from stages.contracts.params.idle import NEUTRAL

STALE = "stale: run `python -m docs.writers.{}`"


def test_the_page_of_parameters_is_fresh() -> None:
    """A new parameter, range, sentence or preset value reaches the page."""
    assert parameters.PAGE.read_text(encoding="utf-8") == parameters.page(), STALE.format(
        "parameters"
    )


def test_the_page_of_formats_is_fresh() -> None:
    """A new output, column or metric reaches the page."""
    assert formats.PAGE.read_text(encoding="utf-8") == formats.page(), STALE.format("formats")


def test_every_parameter_has_its_row() -> None:
    """Nothing is lost on the way from the model to the page."""
    page = parameters.page()
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    rows = 0
    for name, field in Params.model_fields.items():
        keys = list(field.annotation.model_fields)  # type: ignore[union-attr]
        for key in keys:
            assert sections[name].count(f"\n| `{key}`") == 1, f"{name}.{key}"
            assert (f"\n| `{key}` ¹" in sections[name]) == (f"{name}.{key}" in NEUTRAL)
        rows += len(keys)
    assert rows > 100


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Field(ge=1, le=512)], "whole number, 1 to 512"),
        (Annotated[float, Field(gt=0.0)] | None, "number, above 0 or null"),
        (Annotated[float, Field(ge=0.0, lt=1.0)], "number, from 0 on, below 1"),
        (list[Annotated[str, Field(min_length=1)]], "list of: text, not empty"),
        (Literal["a", "b"], "`a`, `b`"),
        (dict[str, bool], "map from text to true or false"),
        (
            Annotated[int, Field(ge=64, multiple_of=16)],
            "whole number, from 64 on, a multiple of 16",
        ),
    ],
)
def test_types_are_said_in_words(annotation: object, words: str) -> None:
    """The page is read by people who do not know the typing module."""
    assert parameters.type_words(annotation) == words


def test_the_words_of_formats_are_complete_and_none_is_left_over() -> None:
    """An output, column or metric without words fails here by its name, and so does an old one."""
    words = yaml.safe_load(formats.WORDS.read_text(encoding="utf-8"))
    outputs = {name for names in formats.all_outputs().values() for name in names}
    assert set(words["files"]) == outputs
    columns = {name: set(table.schema.columns) for name, table in formats.all_tables().items()}
    assert {name: set(known) for name, known in words["columns"].items()} == columns
    keys = {f"{stage}.{key}" for stage, keys in formats.all_metrics().items() for key in keys}
    assert set(words["metrics"]) == keys
    assert len(outputs) > 40
    assert sum(map(len, columns.values())) > 120
