"""Print what pyproject.toml asks for, one requirement per line, for pip.

    python requirements.py pyproject.toml [EXTRA ...]

So an image gets the packages of a run, and none that only tests need.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(pyproject: Path, extras: Sequence[str]) -> list[str]:
    """Return the dependencies of the project and of some of its extras; KeyError for others."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    chosen = list(project["dependencies"])
    for extra in extras:
        chosen += project["optional-dependencies"][extra]
    return chosen


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])) + "\n")
