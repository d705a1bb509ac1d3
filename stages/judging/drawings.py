"""Pictures that were drawn to judge a run, kept until it is published.

Scoring draws for minutes where the base model is large. A file's name holds the hash of its
content, so that one that was cut or damaged is drawn again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import PIL.Image

from stages.judging.scoring import Image
from stages.runtime.files import sha256_file, write_whole

_FOLDER: Final = "judged"
_NAME: Final = re.compile(r"(.+)-(\d+)-([0-9a-f]{64})\.png")


def kept_or_drawn(
    run: Path, name: str, count: int, draw: Callable[[], Iterable[Image]]
) -> list[Image]:
    """Return `count` pictures: those that an earlier session kept, or, if any lacks, new ones.

    Args:
        run: folder of the run.
        name: of the checkpoint and the kind of prompts.
        count: of the pictures that `draw` gives.
        draw: gives them in order.
    """
    kept = _kept(run / _FOLDER, name)
    if len(kept) == count:
        return [read_picture(kept[number]) for number in range(count)]
    pictures = list(draw())
    for number, picture in enumerate(pictures):
        _keep(run / _FOLDER, f"{name}-{number}", picture)
    return pictures


def read_picture(path: Path) -> Image:
    """Return a file's picture, RGB uint8 [H, W, 3]."""
    with PIL.Image.open(path) as file:
        return np.asarray(file.convert("RGB"), dtype=np.uint8)


def _keep(folder: Path, name: str, picture: Image) -> None:
    path = folder / f"{name}.png"
    write_whole(path, partial(PIL.Image.fromarray(picture).save, format="PNG"))
    path.replace(folder / f"{name}-{sha256_file(path)}.png")


def _kept(folder: Path, name: str) -> dict[int, Path]:
    """Return the whole pictures of a name by number."""
    matches = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob(f"{name}-*.png"))]
    return {
        int(match[2]): path
        for path, match in matches
        if match and match[1] == name and sha256_file(path) == match[3]
    }
