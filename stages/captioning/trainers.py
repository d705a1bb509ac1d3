"""Pictures and captions in the one folder layout that ai-toolkit and kohya's scripts both read.

`<repeats>_<concept>/<picture>.png` with a `.txt` beside it: kohya's scripts take the repeats from
the folder's name (`train_data_dir`, `reg_data_dir`, with `caption_extension` .txt), ai-toolkit
reads `folder_path` with all its sub-folders. Pictures outside any concept's folder lie under the
trigger's name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TRAINING: Final = "training"
REGULARISATION: Final = "regularisation"


@dataclass(frozen=True)
class Example:
    """A training picture and its caption. `concept` may be empty."""

    name: str
    picture: Path
    caption: str
    concept: str
    repeats: int
    regularisation: bool


def write_examples(out: Path, examples: Iterable[Example], trigger: str) -> None:
    """Write `training`, and `regularisation` where there are such pictures, below `out`.

    Copies, not links: these folders are handed to other trainers, and some write beside or into
    what they read.
    """
    for example in examples:
        top = REGULARISATION if example.regularisation else TRAINING
        concept = example.concept or _folder_name(trigger)
        folder = out / top / f"{example.repeats}_{concept}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(example.picture, folder / f"{example.name}.png")
        (folder / f"{example.name}.txt").write_text(example.caption, encoding="utf-8")


def _folder_name(trigger: str) -> str:
    """Return the trigger without the signs that some systems do not allow in names."""
    return "".join("-" if sign in '<>:"/\\|?*' else sign for sign in trigger)
