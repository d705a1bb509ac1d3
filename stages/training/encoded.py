"""The files between encode and train: latents and text embeddings, named after what went in.

A name that says what a file is cannot be paired with another picture or caption by its position
in a list, which is the silent bug of diffusers' FLUX scripts with cached latents.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """The VAE's posterior of one picture: `mean` and `std` [C, h, w], normalised, float32."""

    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True)
class Picture:
    """One picture as training sees it; an epoch uses it `repeats` times."""

    name: str
    caption: str
    latents: Latents
    text: TextEmbedding
    repeats: int


@dataclass(frozen=True)
class Prompt:
    """One prompt that pictures are drawn for."""

    prompt: str
    text: TextEmbedding


@dataclass(frozen=True)
class Encoded:
    """Everything that training reads.

    Pictures are in the order of their names, prompts in that of params.yaml: `samples` are drawn
    while training, `plain` ones lack the trigger and show what bleeds. `sha256` is the index's,
    which names every file by the hash of what it was made from: the whole dataset's.
    """

    training: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    empty: TextEmbedding
    samples: tuple[Prompt, ...]
    plain: tuple[Prompt, ...]
    sha256: str

    @property
    def size_px(self) -> int:
        """Side of the encoded pictures in pixels; with buckets that of a square of equal area."""
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
    """Write one picture's latents."""
    write_safetensors(path, {"mean": latents.mean, "std": latents.std})


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
    pictures = [(row, reader.latents(row), reader.text(row)) for row in _of_kind(rows, "image")]
    samples, plain = (_prompts(reader, rows, kind) for kind in ("sample", "plain"))
    empty = next((reader.text(row) for row in _of_kind(rows, "empty")), None)
    problems = reader.problems + _lacking(folder, rows) + _unequal(folder, pictures)
    if problems or empty is None:
        raise DatasetError(f"{folder} cannot be trained on", problems)
    whole = [
        (row.split, Picture(row.name, row.caption, latents, text, row.repeats))
        for row, latents, text in pictures
        if latents is not None and text is not None
    ]
    return Encoded(
        training=tuple(picture for split, picture in whole if split == "train"),
        validation=tuple(picture for split, picture in whole if split == "validation"),
        empty=empty,
        samples=samples,
        plain=plain,
        sha256=sha256_file(folder / INDEX),
    )


class _Row(NamedTuple):
    """One row of the index."""

    kind: str
    name: str
    split: str
    repeats: int
    caption: str
    latents_file: str
    text_file: str


class _Reader:
    """Reads each file once and collects what is wrong."""

    def __init__(self, folder: Path) -> None:
        self.problems: list[Problem] = []
        self._folder = folder
        self._texts: dict[str, TextEmbedding | None] = {}

    def latents(self, row: _Row) -> Latents | None:
        tensors = self._tensors(row.latents_file, ("mean", "std"))
        return Latents(tensors["mean"], tensors["std"]) if tensors else None

    def text(self, row: _Row) -> TextEmbedding | None:
        if row.text_file not in self._texts:
            tensors = self._tensors(row.text_file, ("tokens", "pooled"))
            embedding = TextEmbedding(tensors["tokens"], tensors["pooled"]) if tensors else None
            self._texts[row.text_file] = embedding
        return self._texts[row.text_file]

    def _tensors(self, name: str, keys: tuple[str, ...]) -> dict[str, torch.Tensor] | None:
        path = self._folder / name
        try:
            tensors = safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            self.problems.append(Problem(str(path), f"cannot be read ({error})", _REMEDY))
            return None
        if set(tensors) != set(keys):
            what = f"holds {sorted(tensors)}, expected {sorted(keys)}"
            self.problems.append(Problem(str(path), what, _REMEDY))
            return None
        return tensors


def _prompts(reader: _Reader, rows: Sequence[_Row], kind: str) -> tuple[Prompt, ...]:
    """Return the prompts of a kind by number; unreadable ones are among the reader's problems."""
    ordered = sorted(_of_kind(rows, kind), key=lambda row: int(row.name.rpartition("-")[2]))
    texts = [(row.caption, reader.text(row)) for row in ordered]
    return tuple(Prompt(caption, text) for caption, text in texts if text is not None)


def _of_kind(rows: Sequence[_Row], kind: str) -> list[_Row]:
    return [row for row in rows if row.kind == kind]


def _lacking(folder: Path, rows: Sequence[_Row]) -> list[Problem]:
    needed = {
        ("image", "train"): "Put pictures into the folder of prepare.images.",
        ("image", "validation"): "Put held-out pictures into prepare.validation_images.",
        ("empty", ""): _REMEDY,
    }
    present = {(row.kind, row.split) for row in rows}
    where = str(folder / INDEX)
    return [
        Problem(where, f"no row of kind {kind!r}, split {split!r}", remedy)
        for (kind, split), remedy in needed.items()
        if (kind, split) not in present
    ]


def _unequal(
    folder: Path, pictures: Sequence[tuple[_Row, Latents | None, TextEmbedding | None]]
) -> list[Problem]:
    """Return the pictures that are no whole tokens, or have other channels or another area.

    Buckets differ in shape, by at most a half in area: sides are rounded to whole tokens.
    """
    shapes = {row: tuple(latents.mean.shape) for row, latents, _ in pictures if latents is not None}
    first = next(iter(shapes.values()), ())
    return [
        Problem(str(folder / row.latents_file), f"latents {shape}, others {first}", _REMEDY)
        for row, shape in shapes.items()
        if shape[0] != first[0]
        or any(side % 2 for side in shape[1:])
        or not _AREA_RATIO <= math.prod(shape) / math.prod(first) <= 1 / _AREA_RATIO
    ]
