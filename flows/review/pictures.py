"""One picture that shows two revisions: references and slim adapter, one revision per row."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from flows.review.revisions import fetch_output

INDEX: Final = "data/render/index.csv"
SLIM: Final = "data/slim/images"
TILE_PX: Final = 256
MORE_PAIRS: Final = 3
"""So many more held-out prompts and seeds are on the web page: it is to be small enough to mail."""
_LABEL_PX: Final = 22
_GAP_PX: Final = 6
_FONT_PX: Final = 14
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class Shown:
    """Pictures of one revision with their labels, and the prompt behind the references.

    `more` are `full` and `slim` of the next held-out prompts and seeds, MORE_PAIRS at most.
    """

    revision: str
    prompt: str
    tiles: tuple[tuple[str, Image.Image], ...]
    more: tuple[tuple[str, Image.Image], ...] = ()


def collect_pictures(root: Path, revision: str | None, name: str) -> Shown | None:
    """Return what a revision shows; None where its pictures are in no cache or remote in reach.

    That is `none` and `full` of the first development prompt and seed, and `none`, `full` and
    `slim` of the first held-out ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index.csv"
        if not fetch_output(root, revision, INDEX, index):
            return None
        rows = pd.read_csv(index)
        develop = rows[rows["prompt"].str.startswith("develop-")]
        if develop.empty:
            return None
        first = develop.sort_values(["prompt", "seed"], kind="stable").iloc[0]
        shot = develop[(develop["prompt"] == first["prompt"]) & (develop["seed"] == first["seed"])]
        files = dict(zip(shot["variant"], shot["file"], strict=True))
        tiles = []
        for variant in ("none", "full"):
            picture = Path(folder) / f"{variant}.png"
            if fetch_output(root, revision, f"data/render/{files[variant]}", picture):
                tiles.append((variant, _opened(picture)))
        first_pair, *others = _slim_tiles(root, revision, Path(folder) / "slim") or [[]]
        tiles += first_pair
        more = tuple(
            tile for pair in others[:MORE_PAIRS] for tile in pair if not tile[0].endswith(" none")
        )
    return Shown(name, str(first["text"]), tuple(tiles), more) if tiles else None


def draw_pictures(shown: Sequence[Shown]) -> bytes:
    """Return a JPEG with one row per revision; labels say what each picture is."""
    columns = max(len(each.tiles) for each in shown)
    width = columns * (TILE_PX + _GAP_PX) + _GAP_PX
    row_height = 2 * _LABEL_PX + TILE_PX + _GAP_PX
    sheet = Image.new("RGB", (width, row_height * len(shown) + _GAP_PX), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for row, each in enumerate(shown):
        top = _GAP_PX + row * row_height
        draw.text((_GAP_PX, top), f"{each.revision}: {each.prompt}", _INK, font)
        for column, (label, picture) in enumerate(each.tiles):
            left = _GAP_PX + column * (TILE_PX + _GAP_PX)
            draw.text((left, top + _LABEL_PX), label, _INK, font)
            sheet.paste(_fitted(picture), (left, top + 2 * _LABEL_PX))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _slim_tiles(
    root: Path, revision: str | None, folder: Path
) -> list[list[tuple[str, Image.Image]]]:
    """Return the pictures of every held-out prompt and seed, by name."""
    if not fetch_output(root, revision, SLIM, folder):
        return []
    return [
        [
            (f"{pair.name} {stem}", _opened(pair / f"{stem}.png"))
            for stem in ("none", "full", "slim")
            if (pair / f"{stem}.png").is_file()
        ]
        for pair in sorted(path for path in folder.iterdir() if path.is_dir())
    ]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _fitted(picture: Image.Image) -> Image.Image:
    scale = TILE_PX / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
