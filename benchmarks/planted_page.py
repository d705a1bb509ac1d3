"""docs/planted.md: a table and a contact sheet for each planted pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from stages.imaging.lettering import fit_text, write_text
from stages.imaging.metrics import Picture

_SIDE_PX: Final = 128
_GAP_PX: Final = 6
_LABEL_PX: Final = 14
_PAPER: Final = (250, 249, 246)
_INK: Final = (26, 28, 33)
_JPEG_QUALITY: Final = 80


@dataclass(frozen=True)
class Row:
    """What the lens says of one block of a plant, means over prompts and seeds.

    `isolate` and `without` are the recoveries of the block alone and of all the others;
    `ablation_mse` is the MSE of the latter to the whole LoRA's picture.
    """

    block: str
    share: float
    isolate: float
    isolate_mse: float
    without: float
    ablation_mse: float


@dataclass(frozen=True)
class Found:
    """A plant's rows, its products <u_b, u_c> [blocks, blocks], and its pictures by variant.

    Of each prompt there is the first seed's picture.
    """

    name: str
    title: str
    told: str
    expected: str
    rows: tuple[Row, ...]
    products: np.ndarray
    effect_mse: float
    pictures: Mapping[str, Sequence[Picture]]


def contact_sheet(pictures: Mapping[str, Sequence[Picture]]) -> Image.Image:
    """Return a column per variant with its name above it, a row per prompt and seed."""
    rows = len(next(iter(pictures.values())))
    step = _SIDE_PX + _GAP_PX
    head = _LABEL_PX + 2 * _GAP_PX
    size = (_GAP_PX + step * len(pictures), head + step * rows)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, (variant, made) in enumerate(pictures.items()):
        left = _GAP_PX + column * step
        label = fit_text(variant, _LABEL_PX, _SIDE_PX)
        write_text(draw, (left, _GAP_PX // 2), label, _LABEL_PX, _INK)
        for row, picture in enumerate(made):
            sheet.paste(Image.fromarray(picture), (left, head + row * step))
    return sheet


def write_page(page: Path, found: Sequence[Found], settings: str) -> None:
    """Write the page, and beside it one sheet per plant, `planted-<name>.jpg`."""
    parts = [_HEAD.format(settings=settings)]
    for one in found:
        sheet = page.with_name(f"{page.stem}-{one.name}.jpg")
        contact_sheet(one.pictures).save(sheet, quality=_JPEG_QUALITY, optimize=True)
        parts.append(_section(one, sheet.name))
    page.write_text("\n".join(parts), encoding="utf-8")


def _section(one: Found, sheet: str) -> str:
    lines = [
        f"## {one.title}",
        "",
        f"{one.told} MSE of `none` to `full`: {one.effect_mse:.0f}.",
        "",
        f"![{one.title}]({sheet})",
        "",
        "| block | share | isolate: recovery (MSE) | ablate: recovery (MSE) | interaction with "
        + " | with ".join(row.block for row in one.rows)
        + " |",
        "| --- " * (4 + len(one.rows)) + "|",
    ]
    for row, products in zip(one.rows, one.products, strict=True):
        lines.append(
            f"| {row.block} | {row.share:.2f} | {row.isolate:.2f} ({row.isolate_mse:.0f}) "
            f"| {row.without:.2f} ({row.ablation_mse:.0f}) | "
            + " | ".join(f"{product:.2f}" for product in products)
            + " |"
        )
    return "\n".join([*lines, "", f"By arithmetic: {one.expected}", ""])


_HEAD: Final = """# Planted pairs, with their pictures

`python -m benchmarks.planted --page docs/planted.md` plants four LoRAs in nano-flux whose blocks
are known to work in the ways of the table in [lens.md](lens.md#how-they-differ), makes their
pictures, and measures them.
{settings}

A block **writes** a colour into the stream of the network: its LoRA's A reads a number that is
nearly always 1, its B is the least-squares answer to the wanted change of the velocity. It
**whispers** a direction that changes the pictures little and that a later block tells apart from
what is there anyway; that block **listens**: its A reads about 1 with the whisper and about 0
without it. The fits saw other prompts than the pictures here. Recovery is of pictures, as
everywhere, MSEs are to `full`; shares and interactions are of velocities. With two blocks, `only`
the one is `without` the other. What arithmetic says is met nearly, not wholly: a fit has an error,
an ear hears a little where nobody whispers, and the blocks that follow answer to what they see.
"""
