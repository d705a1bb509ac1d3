"""The files between encode and train: latents and text embeddings, named after what went in.

A name that says what a file is cannot be paired with another picture or caption by its position
in a list, which is the silent bug of diffusers' FLUX scripts with cached latents.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError

from stages.contracts.errors import DatasetError, Problem
from stages.contracts.tables import ENCODED, read_table
from stages.families.latents import VAE_REDUCTION
from stages.families.text import TextEmbedding
from stages.families.weights import Manifest
from stages.runtime.files import sha256_file
from stages.runtime.tensors import write_safetensors

INDEX: Final = "index.csv"
_NAME_DIGITS: Final = 32  # 128 bits of SHA-256
_AREA_RATIO: Final = 0.5
_REMEDY: Final = "Run `dvc repro --force encode`."


@dataclass(frozen=True)
class Latents:
    """The VAE's posterior of one picture: `mean` and `std` [C, h, w], normalised, float32.

    `mask` [h/2, w/2] is how opaque each token is, 0 to 1; None for a picture without transparency.
    """

    mean: torch.Tensor
    std: torch.Tensor
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class View:
    """A picture at one size, and mirrored where it may be."""

    latents: Latents
    mirrored: Latents | None


@dataclass(frozen=True)
class Picture:
    """One picture as training sees it; an epoch uses it `repeats` times.

    `latents` are those of its first size, `mirrored` those of its mirror image, `further` its
    other sizes. `plain_text` is its caption without the trigger, where it was encoded.
    """

    name: str
    caption: str
    latents: Latents
    text: TextEmbedding
    repeats: int
    mirrored: Latents | None = None
    further: tuple[View, ...] = ()
    plain_text: TextEmbedding | None = None

    @property
    def views(self) -> tuple[View, ...]:
        """All sizes, the first one first."""
        return (View(self.latents, self.mirrored), *self.further)


@dataclass(frozen=True)
class Prompt:
    """One prompt that pictures are drawn for."""

    prompt: str
    text: TextEmbedding


@dataclass(frozen=True)
class Encoded:
    """Everything that training reads.

    Pictures are in the order of their names, prompts in that of params.yaml. `training` is what
    the LoRA is to learn, `regularisation` what it is to leave alone; `samples` are drawn while
    training, `plain` prompts lack the trigger and show what bleeds. `sha256` is the index's, which
    names every file by the hash of what it was made from: the whole dataset's. `trigger` is the
    word that captions of training pictures begin with, "" where stage caption put none there.
    """

    training: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    empty: TextEmbedding
    samples: tuple[Prompt, ...]
    plain: tuple[Prompt, ...]
    sha256: str
    regularisation: tuple[Picture, ...] = ()
    trigger: str = ""

    @property
    def size_px(self) -> int:
        """Side of the pictures at their first size; with buckets of a square of equal area."""
        areas = [math.prod(picture.latents.mean.shape[-2:]) for picture in self.training]
        return round(math.sqrt(sum(areas) / len(areas))) * VAE_REDUCTION


def file_name(kind: str, manifest: Manifest, parts: Sequence[str], **inputs: str | int) -> str:
    """Return `<kind>-<hash>.safetensors` for all that decides the file's content.

    Args:
        kind: latents or text.
        manifest: of the base model.
        parts: folders of the base model whose weights take part, such as `vae`.
        **inputs: the picture's hash, the caption, and the params that matter.
    """
    weights = sorted(
        (file.path, file.sha256) for file in manifest.files if file.path.partition("/")[0] in parts
    )
    text = json.dumps({"kind": kind, "weights": weights, "inputs": inputs}, sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]}.safetensors"


def prompt_name(kind: str, number: int) -> str:
    """Return the index's name of the prompt of a kind at a place in params.yaml."""
    return f"{kind}-{number}"


def write_latents(path: Path, latents: Latents) -> None:
    """Write one picture's latents, and its mask if it has one."""
    mask = {} if latents.mask is None else {"mask": latents.mask}
    write_safetensors(path, {"mean": latents.mean, "std": latents.std, **mask})


def write_text(path: Path, text: TextEmbedding) -> None:
    """Write one prompt's embeddings."""
    write_safetensors(path, {"tokens": text.tokens, "pooled": text.pooled})


def read_encoded(folder: Path) -> Encoded:
    """Return what `encode` wrote into `folder`.

    Raises:
        DatasetError: files are missing, broken or of unequal size, or there is no training
            picture, no held-out picture or no empty caption; all problems at once.
        TableError: the index breaks its contract.
    """
    table = read_table(ENCODED, folder / INDEX)
    rows = [_Row(*values) for values in table.itertuples(index=False, name=None)]
    reader = _Reader(folder)
    pictures = list(_pictures(rows, reader))
    samples, plain = (_prompts(reader, rows, kind) for kind in ("sample", "plain"))
    empty = next((reader.text(row.text_file) for row in _of_kind(rows, "empty")), None)
    problems = reader.problems + _lacking(folder, rows) + _unequal(folder, reader.shapes)
    problems += _triggers(folder, rows)
    if problems or empty is None:
        raise DatasetError(f"{folder} cannot be trained on", problems)
    whole = [(row, picture) for row, picture in pictures if picture is not None]
    return Encoded(
        training=tuple(
            picture for row, picture in whole if row.split == "train" and not row.regularisation
        ),
        validation=tuple(
            picture
            for row, picture in whole
            if row.split == "validation" and not row.regularisation
        ),
        empty=empty,
        samples=samples,
        plain=plain,
        sha256=sha256_file(folder / INDEX),
        regularisation=tuple(
            picture for row, picture in whole if row.split == "train" and row.regularisation
        ),
        trigger=next((row.trigger for row in rows if row.trigger), ""),
    )


class _Row(NamedTuple):
    """One row of the index."""

    kind: str
    name: str
    place: int
    size_px: int
    split: str
    repeats: int
    regularisation: bool
    caption: str
    trigger: str
    latents_file: str
    mirrored_file: str
    text_file: str
    plain_caption: str
    plain_text_file: str


class _Reader:
    """Reads each file once and collects what is wrong, and the shapes of all latents."""

    def __init__(self, folder: Path) -> None:
        self.problems: list[Problem] = []
        self.shapes: dict[_Row, tuple[int, ...]] = {}
        self._folder = folder
        self._texts: dict[str, TextEmbedding | None] = {}

    def view(self, row: _Row) -> View | None:
        latents = self._latents(row.latents_file)
        mirrored = self._latents(row.mirrored_file) if row.mirrored_file else None
        if latents is None or (row.mirrored_file and mirrored is None):
            return None
        self.shapes[row] = tuple(latents.mean.shape)
        return View(latents, mirrored)

    def text(self, name: str) -> TextEmbedding | None:
        if name not in self._texts:
            tensors = self._tensors(name, {"tokens", "pooled"}, frozenset())
            embedding = TextEmbedding(tensors["tokens"], tensors["pooled"]) if tensors else None
            self._texts[name] = embedding
        return self._texts[name]

    def _latents(self, name: str) -> Latents | None:
        tensors = self._tensors(name, {"mean", "std"}, {"mask"})
        return Latents(tensors["mean"], tensors["std"], tensors.get("mask")) if tensors else None

    def _tensors(
        self, name: str, needed: Set[str], allowed: Set[str]
    ) -> dict[str, torch.Tensor] | None:
        path = self._folder / name
        try:
            tensors = safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            self.problems.append(Problem(str(path), f"cannot be read ({error})", _REMEDY))
            return None
        if not needed <= set(tensors) <= needed | allowed:
            what = f"holds {sorted(tensors)}, expected {sorted(needed)}"
            self.problems.append(Problem(str(path), what, _REMEDY))
            return None
        return tensors


def _pictures(rows: Sequence[_Row], reader: _Reader) -> Iterator[tuple[_Row, Picture | None]]:
    """Yield the first row of every picture and the picture, None where a file of it is broken."""
    for _, group in groupby(_of_kind(rows, "image"), key=lambda row: row.name):
        sizes = list(group)
        row = sizes[0]
        views = [view for size in sizes if (view := reader.view(size)) is not None]
        text = reader.text(row.text_file)
        plain = reader.text(row.plain_text_file) if row.plain_text_file else None
        if len(views) < len(sizes) or text is None:
            yield row, None
            continue
        first, *further = views
        yield (
            row,
            Picture(
                name=row.name,
                caption=row.caption,
                latents=first.latents,
                text=text,
                repeats=row.repeats,
                mirrored=first.mirrored,
                further=tuple(further),
                plain_text=plain,
            ),
        )


def _prompts(reader: _Reader, rows: Sequence[_Row], kind: str) -> tuple[Prompt, ...]:
    """Return the prompts of a kind by number; unreadable ones are among the reader's problems."""
    ordered = sorted(_of_kind(rows, kind), key=lambda row: int(row.name.rpartition("-")[2]))
    texts = [(row.caption, reader.text(row.text_file)) for row in ordered]
    return tuple(Prompt(caption, text) for caption, text in texts if text is not None)


def _of_kind(rows: Sequence[_Row], kind: str) -> list[_Row]:
    return [row for row in rows if row.kind == kind]


def _lacking(folder: Path, rows: Sequence[_Row]) -> list[Problem]:
    needed = {
        ("image", "train"): "Put pictures into the folder of prepare.images.",
        ("image", "validation"): "Put held-out pictures into prepare.validation_images.",
        ("empty", ""): _REMEDY,
    }
    present = {(row.kind, row.split) for row in rows if not row.regularisation}
    where = str(folder / INDEX)
    return [
        Problem(where, f"no row of kind {kind!r}, split {split!r}", remedy)
        for (kind, split), remedy in needed.items()
        if (kind, split) not in present
    ]


def _triggers(folder: Path, rows: Sequence[_Row]) -> list[Problem]:
    triggers = sorted({row.trigger for row in rows} - {""})
    if len(triggers) < 2:
        return []
    what = f"captions begin with different triggers: {', '.join(triggers)}"
    return [Problem(str(folder / INDEX), what, _REMEDY)]


def _unequal(folder: Path, shapes: Mapping[_Row, tuple[int, ...]]) -> list[Problem]:
    """Return the pictures that are no whole tokens, or have other channels or another area.

    Buckets differ in shape, by at most a half in area: sides are rounded to whole tokens.
    """
    firsts: dict[int, tuple[int, ...]] = {}
    for row, shape in shapes.items():
        firsts.setdefault(row.size_px, shape)
    channels = {shape[0] for shape in list(firsts.values())[:1]}
    return [
        Problem(
            str(folder / row.latents_file),
            f"latents {shape}, others {firsts[row.size_px]}",
            _REMEDY,
        )
        for row, shape in shapes.items()
        if shape[0] not in channels
        or any(side % 2 for side in shape[1:])
        or not _AREA_RATIO <= math.prod(shape) / math.prod(firsts[row.size_px]) <= 1 / _AREA_RATIO
    ]
