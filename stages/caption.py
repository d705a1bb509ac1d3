"""Prepared pictures in, one caption each out.

Reads:  the prepared pictures and their manifest, the captions beside the raw pictures (.txt,
        metadata.jsonl, captions.csv), the captioner's weights, and the base model's tokenizers.
Writes: captions.csv, words.csv, dataset/ (training pictures with .txt side by side, as other
        trainers read them), metrics.json.
Params: caption, model.text_tokens.

A caption that a person wrote is changed in one way only, so that the trigger comes first and
exactly once, and the table says so; prefix and suffix are for generated captions alone.
Regularisation pictures show what the trigger does not mean: their captions go without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from stages.captioning.captioner import CAPTIONER_FILES, load_captioner
from stages.captioning.interface import Picture
from stages.captioning.rules import put_between, put_trigger_first
from stages.captioning.sidecar import Written, read_written
from stages.captioning.tokens import TokenCount, measure_tokens, summarise_tokens
from stages.captioning.trainers import Example, write_examples
from stages.captioning.trigger import trigger_problems
from stages.captioning.words import count_words, words_in_all
from stages.contracts.captions import find_trigger, says_something, unreadable_characters
from stages.contracts.errors import DatasetError, Problem
from stages.contracts.params import CaptionParams
from stages.contracts.tables import (
    ACCEPTED,
    CAPTIONS,
    MANIFEST,
    WORDS,
    read_table,
    write_table,
)
from stages.families.hub import download
from stages.families.weights import ensure_weights
from stages.imaging.folder import CAPTION_SUFFIX, list_folder
from stages.runtime.console import run_stage
from stages.runtime.device import configure_torch
from stages.runtime.files import sha256_file, write_json
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Picture:
    name: str
    split: str
    concept: str
    repeats: int
    regularisation: bool
    folder: Path  # of the raw picture
    source: str
    path: Path


@dataclass(frozen=True)
class _Caption:
    picture: _Picture
    text: str
    trigger: str
    origin: str
    source: str
    change: str


def caption(
    params: CaptionParams,
    text_tokens: int,
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
        DatasetError: a trigger that means something already, captions that cannot be used or
            belong to no picture, pictures without one that nobody writes for, or that the
            captioner has no words for; all are listed.
        WeightsError: base weights or captioner are missing or do not fit.
        TableError: the manifest of the pictures is missing or broken.
    """
    folder = ensure_weights(weights)
    problems = trigger_problems(params.trigger, folder)
    pictures, skipped = _pictures(images, {"train": captions, "validation": validation_captions})
    written = _written(pictures, skipped, problems)
    lacking = [picture for picture in pictures if picture.name not in written]
    if params.captioner == "sidecar":
        problems += [_lacks_caption(picture) for picture in lacking]
    problems += _bleeding({name: entry.text for name, entry in written.items()}, pictures, params)
    if problems:
        raise DatasetError("These captions cannot be used", problems)
    generated = _generated(params, captioner, lacking) if lacking else {}
    complete = [_complete(picture, written, generated, params) for picture in pictures]
    tokens = _count(folder, complete, text_tokens)
    with replace_folder(out) as work:
        write_table(CAPTIONS, _table(complete, tokens), work / "captions.csv")
        training = [entry for entry in complete if entry.picture.split == "train"]
        subject = [entry.text for entry in training if not entry.picture.regularisation]
        words = count_words(subject, params.trigger)
        write_table(WORDS, words, work / "words.csv")
        write_examples(work / "dataset", map(_example, training), params.trigger)
        metrics = {
            "captions_user": len(written),
            "captions_generated": len(generated),
            "captions_changed": sum(
                entry.origin == "user" and entry.change != "none" for entry in complete
            ),
            "words": len(words),
            "words_in_every_caption": len(words_in_all(words)),
        }
        write_json(work / "metrics.json", metrics | summarise_tokens(tokens))
    _log.info("caption: %d written by you, %d by the captioner", len(written), len(generated))


def _pictures(
    images: Path, folders: Mapping[str, Path]
) -> tuple[list[_Picture], dict[Path, list[str]]]:
    """Return the accepted pictures, and folder -> sources of those that `prepare` skipped."""
    pictures = []
    skipped: dict[Path, list[str]] = {folder: [] for folder in folders.values()}
    for row in read_table(MANIFEST, images / "manifest.csv").to_dict("records"):
        folder = _raw_folder(row["split"], row["source"], row["source_sha256"], folders)
        if row["status"] != ACCEPTED:
            skipped[folder].append(row["source"])
            continue
        names = ("split", "concept", "repeats", "regularisation", "source")
        values = {name: row[name] for name in names}
        path = images / "images" / row["file"]
        pictures.append(_Picture(name=row["image"], folder=folder, path=path, **values))
    return pictures, skipped


def _raw_folder(split: str, source: str, sha256: str, folders: Mapping[str, Path]) -> Path:
    """Return where a raw picture lies: `prepare` may hold out some of the training folder."""
    own = folders[split]
    having = [folder for folder in folders.values() if (folder / source).is_file()]
    if len(having) > 1:
        having = [folder for folder in having if sha256_file(folder / source) == sha256]
    return having[0] if having and own not in having else own


def _written(
    pictures: Sequence[_Picture],
    skipped: Mapping[Path, Sequence[str]],
    problems: list[Problem],
) -> dict[str, Written]:
    """Return picture name -> the person's caption; what is wrong with others goes to `problems`."""
    written: dict[str, Written] = {}
    for folder, left_out in skipped.items():
        names = {picture.source: picture.name for picture in pictures if picture.folder == folder}
        if not names:
            continue  # `prepare` did not look there
        listing = list_folder(folder)
        problems += listing.problems
        # Refused pictures are the affair of `prepare`.
        problems += [
            refusal.problem
            for refusal in listing.refused
            if refusal.path.suffix.lower() == CAPTION_SUFFIX
        ]
        found, wrong = read_written(folder, listing.captions, [*left_out, *names])
        problems += wrong
        written |= {names[source]: entry for source, entry in found.items() if source in names}
    return written


def _lacks_caption(picture: _Picture) -> Problem:
    beside = Path(picture.source).with_suffix(CAPTION_SUFFIX).as_posix()
    remedy = f"Write {beside}, or set caption.captioner to one that writes."
    return Problem(picture.source, "no caption, and caption.captioner is sidecar", remedy)


def _bleeding(
    texts: Mapping[str, str], pictures: Sequence[_Picture], params: CaptionParams
) -> list[Problem]:
    """Return one problem per regularisation picture whose caption holds the trigger."""
    what = f"caption of a regularisation picture with the trigger {params.trigger!r} in it"
    return [
        Problem(picture.source, what, "Take the trigger out: it would be taught to mean this too.")
        for picture in pictures
        if picture.regularisation and find_trigger(texts.get(picture.name, ""), params.trigger)
    ]


def _generated(
    params: CaptionParams, captioner: Path, pictures: Sequence[_Picture]
) -> dict[str, str]:
    """Return picture name -> the captioner's caption; an empty one is an error, not a caption."""
    if params.repository is not None and params.revision is not None:
        captioner = download(params.repository, params.revision, CAPTIONER_FILES)
    write = load_captioner(params, captioner, configure_torch())
    answers = list(track(write(_opened(pictures)), len(pictures), "caption"))
    texts = {picture.name: text for picture, text in zip(pictures, answers, strict=True)}
    problems = _bleeding(texts, pictures, params)
    for picture in pictures:
        text = texts[picture.name]
        beside = Path(picture.source).with_suffix(CAPTION_SUFFIX).as_posix()
        remedy = f"Write {beside} beside the picture."
        if not says_something(text):
            what = "the captioner gave an empty caption"
            problems.append(Problem(picture.source, what, remedy))
        elif unreadable_characters(text):
            what = f"the captioner gave control characters ({text!a})"
            problems.append(Problem(picture.source, what, remedy))
    if problems:
        raise DatasetError("The captioner has no words for these pictures", problems)
    return texts


def _opened(pictures: Sequence[_Picture]) -> Iterator[Picture]:
    for picture in pictures:
        with Image.open(picture.path) as image:
            yield Picture(image.convert("RGB"), picture.concept)


def _complete(
    picture: _Picture,
    written: Mapping[str, Written],
    generated: Mapping[str, str],
    params: CaptionParams,
) -> _Caption:
    own = written.get(picture.name)
    if own:
        text, changes = own.text, list[str]()
    else:
        text, changes = put_between(generated[picture.name], params.prefix, params.suffix)
    trigger = "" if picture.regularisation else params.trigger
    if trigger:
        text, change = put_trigger_first(text, trigger)
        changes += [change] if change != "none" else []
    if own and changes:
        _log.info("%s, caption in %s: %s", picture.source, own.source, ", ".join(changes))
    return _Caption(
        picture=picture,
        text=text,
        trigger=trigger,
        origin="user" if own else "generated",
        source=own.source if own else params.captioner,
        change="; ".join(changes) or "none",
    )


def _count(
    folder: Path, captions: Sequence[_Caption], text_tokens: int
) -> list[tuple[TokenCount, TokenCount]]:
    """Return each caption's tokens, and log what the encoders cut off."""
    counts = measure_tokens(folder, [entry.text for entry in captions], text_tokens)
    for entry, pair in zip(captions, counts, strict=True):
        if short := [
            f"{count.encoder} reads {count.limit} of {count.tokens} tokens"
            for count in pair
            if count.cut
        ]:
            _log.warning("caption of %s: %s", entry.picture.source, ", ".join(short))
    return counts


def _table(
    captions: Sequence[_Caption], counts: Sequence[tuple[TokenCount, TokenCount]]
) -> pd.DataFrame:
    rows = [
        {
            "image": entry.picture.name,
            "split": entry.picture.split,
            "caption": entry.text,
            "trigger": entry.trigger,
            "origin": entry.origin,
            "written_by": entry.source,
            "change": entry.change,
            "clip_tokens": clip.tokens,
            "t5_tokens": t5.tokens,
            "clip_cut": clip.cut,
            "t5_cut": t5.cut,
        }
        for entry, (clip, t5) in zip(captions, counts, strict=True)
    ]
    return pd.DataFrame(rows)


def _example(entry: _Caption) -> Example:
    picture = entry.picture
    return Example(
        name=picture.name,
        picture=picture.path,
        caption=entry.text,
        concept=picture.concept,
        repeats=picture.repeats,
        regularisation=picture.regularisation,
    )


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        caption,
        sections=("caption", "model.text_tokens"),
        paths=("weights", "images", "captions", "validation_captions", "captioner", "out"),
    )


if __name__ == "__main__":
    main()
