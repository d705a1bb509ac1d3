"""The files of a picture folder, judged by their names and links alone; none is decoded."""

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
class FolderListing:
    """Pictures and captions of one folder, sorted by name, and what is wrong with the rest."""

    pictures: tuple[Path, ...]
    captions: tuple[Path, ...]
    problems: tuple[Problem, ...]


def picture_name(path: Path) -> str:
    """Return the name of a picture in every later stage: its stem in Unicode's composed form.

    macOS stores `ü` decomposed, Linux as typed; both are one name here.
    """
    return unicodedata.normalize("NFC", path.stem)


def list_folder(folder: Path) -> FolderListing:
    """Return what lies in `folder`, whatever order the file system gives it in.

    Hidden files, system files (Thumbs.db) and notes (.md, .json, .jsonl, .csv) are not pictures
    and are left alone. Everything else that is neither a picture nor a caption is a problem, so
    that nothing a person meant as a picture is lost in silence.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "does not exist"
        problem = Problem(str(folder), what, "Name a folder with pictures in params.yaml.")
        return FolderListing((), (), (problem,))
    try:
        entries = sorted(path for path in folder.iterdir() if not _is_left_alone(path))
    except PermissionError:
        problem = Problem(str(folder), "may not be read", "Give yourself the right to read it.")
        return FolderListing((), (), (problem,))
    judged = [(path, _entry_problem(path, folder)) for path in entries]
    problems = [problem for _, problem in judged if problem]
    sound = [path for path, problem in judged if problem is None]
    pictures = tuple(path for path in sound if path.suffix.lower() in PICTURE_SUFFIXES)
    captions = tuple(path for path in sound if path.suffix.lower() == CAPTION_SUFFIX)
    problems += _clashes(pictures)
    if not pictures and not problems:
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        problems.append(Problem(str(folder), "holds no pictures", f"Put some in ({suffixes})."))
    return FolderListing(pictures, captions, tuple(problems))


def shared_names(training: Sequence[Path], validation: Sequence[Path]) -> list[Problem]:
    """Return one problem per validation picture that is named like a training picture."""
    taken = {_key(path): path for path in training}
    return [
        Problem(
            str(path),
            f"has the same name as the training picture {taken[_key(path)].name}",
            "Rename one of the two; captions and results go by the name without extension.",
        )
        for path in validation
        if _key(path) in taken
    ]


def _is_left_alone(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES


def _entry_problem(path: Path, folder: Path) -> Problem | None:
    where = str(path)
    if not _is_plain_name(path.name):
        remedy = "Rename it: UTF-8, no line breaks or other control characters, no backslash."
        return Problem(ascii(where), "file name cannot be used", remedy)
    if path.is_symlink() and not path.exists():
        return Problem(where, "link to a file that is not there", "Copy the file into the folder.")
    if not path.resolve().is_relative_to(folder.resolve()):
        return Problem(where, "link that leaves the folder", "Copy the file into the folder.")
    if path.is_dir():
        return Problem(where, "sub-folder", "Move its pictures up; sub-folders are not read.")
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


def _clashes(pictures: Iterable[Path]) -> Iterator[Problem]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        groups[_key(path)].append(path)
    for group in groups.values():
        if len(group) > 1:
            names = ", ".join(path.name for path in group)
            yield Problem(
                str(group[0]),
                f"shares its name with others ({names}), so they would share a caption",
                "Rename all but one.",
            )


def _key(path: Path) -> str:
    return picture_name(path).casefold()
