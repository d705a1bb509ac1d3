"""Which files of the folders are pictures of the dataset, of which concept and split."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.contracts.errors import Problem
from stages.contracts.params import ConceptParams, PrepareParams
from stages.imaging.folder import (
    CAPTION_SUFFIX,
    FolderListing,
    concept_of,
    list_folder,
    picture_name,
    shared_names,
)

_HASH_DIGITS: Final = 16  # 64 bits of the content's hash decide the split


@dataclass(frozen=True)
class Source:
    """One file: where it lies, what it is called, and how it is used."""

    path: Path
    name: str
    concept: str
    repeats: int
    regularisation: bool
    split: str
    relative: str
    caption_source: str


@dataclass(frozen=True)
class Sources:
    """The files to look into, those that are refused by name or link, and folders' problems."""

    pictures: tuple[Source, ...]
    refused: tuple[tuple[Source, Problem], ...]
    problems: tuple[Problem, ...]


def find_sources(images: Path, validation: Path, params: PrepareParams) -> Sources:
    """Return the files of both folders; with a validation share the second is not looked at."""
    roots = {"train": images}
    if params.validation_share == 0:
        roots["validation"] = validation
    listings = {split: list_folder(root) for split, root in roots.items()}
    refused = [(split, item) for split, listing in listings.items() for item in listing.refused]
    if "validation" in listings:
        pictures = listings["train"].pictures, listings["validation"].pictures
        same = shared_names(pictures[0], images, pictures[1], validation)
        refused += [("validation", item) for item in same]
    away = {item.path for _, item in refused}
    concepts = {concept.folder: concept for concept in params.concepts}
    captioned = {split: _captioned(roots[split], listing) for split, listing in listings.items()}
    problems = [problem for listing in listings.values() for problem in listing.problems]

    def source(split: str, path: Path) -> Source:
        return _source(path, roots[split], split, concepts, captioned[split])

    return Sources(
        tuple(
            source(split, path)
            for split, listing in listings.items()
            for path in listing.pictures
            if path not in away
        ),
        tuple((source(split, item.path), item.problem) for split, item in refused),
        (*problems, *_missing_concepts(images, params.concepts), *_nested(roots.values())),
    )


def split_of(source: Source, sha256: str, share: float) -> str:
    """Return the split of a picture with this content hash.

    It depends on the picture's own content alone: adding a picture moves no other one, and copies
    stay together. Regularisation pictures are never held out.
    """
    if share == 0 or source.regularisation:
        return source.split
    place = int(sha256[:_HASH_DIGITS], 16) / 16**_HASH_DIGITS
    return "validation" if place < share else "train"


def _source(
    path: Path,
    root: Path,
    split: str,
    concepts: Mapping[str, ConceptParams],
    captioned: frozenset[str],
) -> Source:
    name = _writable(picture_name(path, root)).replace("\\", "-")
    concept = _writable(concept_of(path, root)).replace("\\", "-")
    listed = concepts.get(concept)
    return Source(
        path=path,
        name=name,
        concept=concept,
        repeats=listed.repeats if listed else 1,
        regularisation=listed.regularisation if listed else False,
        split=split,
        relative=_writable(path.relative_to(root).as_posix()),
        caption_source=CAPTION_SUFFIX.removeprefix(".") if name in captioned else "",
    )


def _captioned(root: Path, listing: FolderListing) -> frozenset[str]:
    return frozenset(picture_name(path, root) for path in listing.captions)


def _writable(name: str) -> str:
    """Return a file name as text: bytes that are not UTF-8 and control characters escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda sign: f"\\x{ord(sign[0]):02x}", text)


def _nested(roots: Collection[Path]) -> list[Problem]:
    """Return a problem if one folder lies in another: a picture would be of both splits."""
    remedy = "Put the two folders of prepare.images and prepare.validation_images side by side."
    return [
        Problem(str(inner), f"lies in {outer}, whose sub-folders are concepts", remedy)
        for inner in roots
        for outer in roots
        if inner is not outer and inner.resolve().is_relative_to(outer.resolve())
    ]


def _missing_concepts(images: Path, concepts: Sequence[ConceptParams]) -> list[Problem]:
    remedy = "Correct prepare.concepts, or make the folder."
    return [
        Problem(str(images / concept.folder), "concept without a folder of its name", remedy)
        for concept in concepts
        if not (images / concept.folder).is_dir()
    ]
