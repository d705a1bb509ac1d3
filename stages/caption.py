"""Prepared pictures in, one caption each out.

Reads:  the prepared pictures and their manifest, the .txt files beside the raw pictures, the
        captioner's weights, and the base model's tokenizers.
Writes: captions.csv, dataset/ (training pictures with .txt side by side, as other trainers read
        them), metrics.json.
Params: caption, model.

A caption that a person wrote is changed in one way only, so that the trigger comes first and
exactly once, and the table says so.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
from PIL import Image

from stages.captioning.captioner import load_captioner
from stages.captioning.rules import (
    CaptionRefusedError,
    put_trigger_first,
    read_caption,
    says_something,
)
from stages.contracts.errors import DatasetError, Problem
from stages.contracts.params import CaptionParams, ModelParams
from stages.contracts.tables import CAPTIONS, MANIFEST, accepted, read_table, write_table
from stages.families.hub import download
from stages.families.text import count_tokens
from stages.families.weights import ensure_weights
from stages.imaging.folder import list_folder, picture_name
from stages.runtime.console import run_stage
from stages.runtime.device import configure_torch
from stages.runtime.files import write_json
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track

_CLIP_TOKENS: Final = 77
"""CLIP's own length, where its tokenizer does not state another."""

_CAPTIONER_FILES: Final = ("*.json", "*.safetensors", "*.txt")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Picture:
    name: str
    split: str
    source: str
    path: Path


@dataclass(frozen=True)
class _Caption:
    picture: _Picture
    text: str
    origin: str
    change: str


def caption(
    params: CaptionParams,
    model: ModelParams,
    *,
    weights: Path,
    images: Path,
    captions: Path,
    validation_captions: Path,
    captioner: Path,
    out: Path,
) -> None:
    """Write one caption per prepared picture: the person's own, or else the captioner's.

    Raises:
        DatasetError: caption files that cannot be used or belong to no picture, or pictures that
            the captioner has no words for; all are listed.
        WeightsError: base weights or captioner are missing or do not fit.
        TableError: the manifest of the pictures is missing or broken.
    """
    folder = ensure_weights(weights)
    pictures = _pictures(images)
    written, problems = _written(pictures, {"train": captions, "validation": validation_captions})
    if problems:
        raise DatasetError("These captions cannot be used", problems)
    lacking = [picture for picture in pictures if picture.name not in written]
    generated = _generated(params, captioner, lacking) if lacking else {}
    complete = [_complete(picture, written, generated, params.trigger) for picture in pictures]
    tokens = count_tokens(folder, [entry.text for entry in complete])
    over_limit = _over_limit(complete, tokens, (_clip_tokens(folder), model.text_tokens))
    with replace_folder(out) as work:
        write_table(CAPTIONS, _table(complete, tokens), work / "captions.csv")
        _write_dataset(work / "dataset", complete)
        metrics = {
            "captions_user": len(written),
            "captions_generated": len(generated),
            "captions_changed": sum(
                entry.origin == "user" and entry.change != "none" for entry in complete
            ),
            "tokens_over_limit": over_limit,
        }
        write_json(work / "metrics.json", metrics)
    _log.info("caption: %d written by you, %d by the captioner", len(written), len(generated))


def _pictures(images: Path) -> list[_Picture]:
    manifest = accepted(read_table(MANIFEST, images / "manifest.csv"))
    return [
        _Picture(str(row.image), str(row.split), str(row.source), images / "images" / str(row.file))
        for row in manifest.itertuples()
    ]


def _written(
    pictures: Sequence[_Picture], folders: dict[str, Path]
) -> tuple[dict[str, str], list[Problem]]:
    """Return picture name -> the person's caption, and every caption file that is none."""
    written: dict[str, str] = {}
    problems: list[Problem] = []
    for split, folder in folders.items():
        names = {picture.name for picture in pictures if picture.split == split}
        listing = list_folder(folder)
        problems += listing.problems
        for path in listing.captions:
            name = picture_name(path, folder)
            if name not in names:
                remedy = "Name it like its picture, capitals included, or move it away."
                problems.append(Problem(str(path), "caption without a picture", remedy))
            elif name in written:
                remedy = "Keep one of them."
                problems.append(Problem(str(path), "second caption of its picture", remedy))
            else:
                try:
                    written[name] = read_caption(path)
                except CaptionRefusedError as error:
                    problems.append(error.problem)
    return written, problems


def _generated(
    params: CaptionParams, captioner: Path, pictures: Sequence[_Picture]
) -> dict[str, str]:
    """Return picture name -> the captioner's caption; an empty one is an error, not a caption."""
    if params.repository is not None and params.revision is not None:
        captioner = download(params.repository, params.revision, _CAPTIONER_FILES)
    write = load_captioner(params.captioner, captioner, params.max_new_tokens, configure_torch())
    texts = list(track(write(_opened(pictures)), len(pictures), "caption"))
    problems = [
        Problem(
            picture.source,
            "the captioner gave an empty caption",
            f"Write {picture.name}.txt beside the picture.",
        )
        for picture, text in zip(pictures, texts, strict=True)
        if not says_something(text)
    ]
    if problems:
        raise DatasetError("The captioner has no words for these pictures", problems)
    return {picture.name: text for picture, text in zip(pictures, texts, strict=True)}


def _opened(pictures: Sequence[_Picture]) -> Iterator[Image.Image]:
    for picture in pictures:
        with Image.open(picture.path) as image:
            yield image.convert("RGB")


def _complete(
    picture: _Picture, written: dict[str, str], generated: dict[str, str], trigger: str
) -> _Caption:
    by_person = picture.name in written
    text, change = put_trigger_first((written if by_person else generated)[picture.name], trigger)
    if by_person and change != "none":
        _log.info("%s.txt: %s", picture.name, change)
    return _Caption(picture, text, "user" if by_person else "generated", change)


def _clip_tokens(folder: Path) -> int:
    """Return how many tokens CLIP reads, markers included, by its tokenizer's own settings."""
    path = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    return int(settings.get("model_max_length", _CLIP_TOKENS))


def _over_limit(
    captions: Sequence[_Caption], tokens: Sequence[tuple[int, int]], limits: tuple[int, int]
) -> int:
    """Return how many captions an encoder cuts short, and log which."""
    count = 0
    for entry, counts in zip(captions, tokens, strict=True):
        cut = [
            f"{name} reads {limit} of {length} tokens"
            for name, length, limit in zip(("CLIP", "T5"), counts, limits, strict=True)
            if length > limit
        ]
        if cut:
            count += 1
            _log.warning("caption of %s: %s", entry.picture.source, ", ".join(cut))
    return count


def _table(captions: Sequence[_Caption], tokens: Sequence[tuple[int, int]]) -> pd.DataFrame:
    rows = [
        {
            "image": entry.picture.name,
            "split": entry.picture.split,
            "caption": entry.text,
            "origin": entry.origin,
            "change": entry.change,
            "clip_tokens": clip,
            "t5_tokens": t5,
        }
        for entry, (clip, t5) in zip(captions, tokens, strict=True)
    ]
    return pd.DataFrame(rows)


def _write_dataset(folder: Path, captions: Sequence[_Caption]) -> None:
    """Write the training pictures and their captions side by side.

    Copies, not links: this folder is handed to other trainers, and some write beside or into what
    they read.
    """
    folder.mkdir()
    for entry in captions:
        if entry.picture.split == "train":
            shutil.copyfile(entry.picture.path, folder / f"{entry.picture.name}.png")
            (folder / f"{entry.picture.name}.txt").write_text(entry.text, encoding="utf-8")


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        caption,
        sections=("caption", "model"),
        paths=("weights", "images", "captions", "validation_captions", "captioner", "out"),
    )


if __name__ == "__main__":
    main()
