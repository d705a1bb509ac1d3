"""Reading one section of nano/params.yaml into a typed record."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import yaml

Section = TypeVar("Section")


def load_section(path: Path, name: str, record: type[Section]) -> Section:
    """The section `name` of the YAML file at `path` as the dataclass `record`.

    Raises:
        ValueError: if the section is missing, or its keys are not exactly the record's fields.
    """
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    if name not in document:
        raise ValueError(f"{path}: no section {name!r}; it has {sorted(document)}")
    fields = {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    given = set(document[name])
    if given != fields:
        raise ValueError(
            f"{path}: section {name!r} lacks {sorted(fields - given)}"
            f" and has the unknown keys {sorted(given - fields)}"
        )
    return record(**document[name])
