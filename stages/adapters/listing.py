"""Long lists of names in an error message, short enough to read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

SHOWN_NAMES: Final = 10
"""A list of names shows this many and then says how many there are in all."""


def list_names(names: Collection[str]) -> str:
    """Return the sorted names, cut at ten with the total: `a, b, … (494 in all)`."""
    shown = ", ".join(sorted(names)[:SHOWN_NAMES])
    return shown if len(names) <= SHOWN_NAMES else f"{shown}, … ({len(names)} in all)"
