"""The files of a picture folder, judged by their names and links alone; none is decoded.

Pictures lie in the folder itself or in sub-folders of it, one per concept.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.contracts.errors import Problem

PICTURE_SUFFIXES: Final = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".jpeg",
        ".jpg",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
    }
)
CAPTION_SUFFIX: Final = ".txt"
_NOTE_SUFFIXES: Final = frozenset({CAPTION_SUFFIX, ".csv", ".json", ".jsonl", ".md"})
_SYSTEM_FILES: Final = frozenset({"desktop.ini", "thumbs.db"})


@dataclass(frozen=True)
class Refused:
    """One file of a folder that cannot be used, and why."""

    path: Path
    problem: Problem


@dataclass(frozen=True)
class FolderListing:
    """Pictures and captions of a folder and its sub-folders, sorted by path.

    `refused` are the files that cannot be used, `problems` what is wrong with the folder itself.
    """

    pictures: tuple[Path, ...]
    captions: tuple[Path, ...]
    refused: tuple[Refused, ...]
    problems: tuple[Problem, ...]


def concept_of(path: Path, root: Path) -> str:
    """Return the concept of a file in the folder `root`: its sub-folder's name, or "" for none."""
    parents = path.relative_to(root).parts[:-1]
    return unicodedata.normalize("NFC", "-".join(parents))


def picture_name(path: Path, root: Path) -> str:
    """Return the name of a picture in every later stage: `<stem>`, or `<concept>-<stem>`.

    In Unicode's composed form: macOS stores `ü` decomposed, Linux as typed; both are one name.
    """
    concept = concept_of(path, root)
    stem = unicodedata.normalize("NFC", path.stem)
    return f"{concept}-{stem}" if concept else stem


def list_folder(root: Path) -> FolderListing:
    """Return what lies in `root` and its sub-folders, whatever order the file system gives it in.

    Sub-folders are concepts; they may not have sub-folders of their own. Hidden files, system
    files (Thumbs.db) and notes (.md, .json, .jsonl, .csv) are not pictures and are left alone.
    Everything else that is neither a picture nor a caption is refused, so that nothing a person
    meant as a picture is lost in silence.
    """
    if not root.is_dir():
        what = "not a folder" if root.exists() else "does not exist"
        problem = Problem(str(root), what, "Name a folder with pictures in params.yaml.")
        return FolderListing((), (), (), (problem,))
    problems: list[Problem] = []
    entries = _entries(root, problems)
    for folder in [path for path in entries if _is_concept(path, root)]:
        entries += _entries(folder, problems)
    judged = [
        (path, _entry_problem(path, root))
        for path in sorted(entries)
        if not _is_concept(path, root)
    ]
    refused = [Refused(path, problem) for path, problem in judged if problem]
    sound = [path for path, problem in judged if problem is None]
    pictures = [path for path in sound if path.suffix.lower() in PICTURE_SUFFIXES]
    captions = tuple(path for path in sound if path.suffix.lower() == CAPTION_SUFFIX)
    clashes = list(_clashes(pictures, root))
    if not pictures and not refused and not problems:
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        problems.append(Problem(str(root), "holds no pictures", f"Put some in ({suffixes})."))
    clashing = {refusal.path for refusal in clashes}
    return FolderListing(
        tuple(path for path in pictures if path not in clashing),
        captions,
        tuple(sorted([*refused, *clashes], key=lambda refusal: refusal.path)),
        tuple(problems),
    )


def shared_names(
    training: Sequence[Path], images: Path, validation: Sequence[Path], held_out: Path
) -> list[Refused]:
    """Return the validation pictures (of folder `held_out`) named like one of the folder `images`.

    One name is one picture in every later table.
    """
    taken = {_key(path, images): path for path in training}
    return [
        Refused(
            path,
            Problem(
                str(path),
                f"has the same name as the training picture {taken[_key(path, held_out)].name}",
                "Rename one of the two; captions and results go by the name without extension.",
            ),
        )
        for path in validation
        if _key(path, held_out) in taken
    ]


def _entries(folder: Path, problems: list[Problem]) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not _is_left_alone(path)]
    except PermissionError:
        remedy = "Give yourself the right to read it."
        problems.append(Problem(str(folder), "may not be read", remedy))
        return []


def _is_concept(path: Path, root: Path) -> bool:
    return (
        path.parent == root
        and _is_plain_name(path.name)
        and path.is_dir()
        and path.resolve().is_relative_to(root.resolve())
    )


def _is_left_alone(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES


def _entry_problem(path: Path, root: Path) -> Problem | None:
    where = str(path)
    if not _is_plain_name(path.name):
        remedy = "Rename it: UTF-8, no line breaks or other control characters, no backslash."
        return Problem(ascii(where), "file name cannot be used", remedy)
    if path.is_symlink() and not path.exists():
        return Problem(where, "link to a file that is not there", "Copy the file into the folder.")
    if not path.resolve().is_relative_to(root.resolve()):
        return Problem(where, "link that leaves the folder", "Copy the file into the folder.")
    if path.is_dir():
        remedy = "Move its pictures up: a concept's folder has no folders of its own."
        return Problem(where, "sub-folder of a sub-folder", remedy)
    if not path.is_file():
        return Problem(where, "not a regular file", "Remove it from the folder.")
    suffix = path.suffix.lower()
    if suffix not in PICTURE_SUFFIXES | _NOTE_SUFFIXES:
        formats = ", ".join(sorted(PICTURE_SUFFIXES))
        remedy = f"Save it as one of {formats}, or move it away."
        what = f"not a picture format that is read ({suffix or 'no extension'})"
        return Problem(where, what, remedy)
    return None


def _is_plain_name(name: str) -> bool:
    # A name that is not UTF-8 on disk reaches Python with lone surrogates (category Cs).
    return "\\" not in name and not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)


def _clashes(pictures: Iterable[Path], root: Path) -> Iterator[Refused]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        groups[_key(path, root)].append(path)
    for group in groups.values():
        names = ", ".join(path.relative_to(root).as_posix() for path in group)
        together = len({path.parent for path in group}) == 1
        why = "share a caption" if together else f"all be called {picture_name(group[0], root)}"
        what = f"shares its name with others ({names}), so they would {why}"
        problem = Problem(str(group[0]), what, "Rename all but one.")
        if len(group) > 1:
            yield from (Refused(path, problem) for path in group)


def _key(path: Path, root: Path) -> str:
    return picture_name(path, root).casefold()
