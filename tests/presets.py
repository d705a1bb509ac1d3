"""Presets as a person has them after the first run, which names the commits to write down."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stages.contracts.params import Params, load_params

ROOT: Final = Path(__file__).parents[1]
PRESETS: Final = sorted((ROOT / "presets").glob("*.yaml"))
COMMIT: Final = "ab" * 20


def load_preset(path: Path, folder: Path) -> Params:
    """Return the params of a preset, with a commit in place of each branch."""
    text = path.read_text(encoding="utf-8").replace("revision: main\n", f"revision: {COMMIT}\n")
    pinned = folder / path.name
    pinned.write_text(text, encoding="utf-8")
    return load_params(pinned)
