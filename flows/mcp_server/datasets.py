"""Pictures and captions of other programs: checked one by one, then put into a dataset at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from flows.mcp_server.inbox import (
    Inbox,
    changing,
    existing,
    names,
    place_of,
    put_file,
    require_new,
    require_no_link,
    require_space,
    workbench,
)
from flows.mcp_server.limits import (
    CALL_BYTES,
    CALL_FILES,
    CAPTION_BYTES,
    DATASET_BYTES,
    DATASET_FILES,
    FILE_BYTES,
    PICTURE_PIXELS,
)
from flows.mcp_server.requests import (
    RequestError,
    content_problem,
    decoded,
    name_problem,
    require_name,
)
from stages.contracts.errors import Problem
from stages.imaging.folder import CAPTION_SUFFIX, PICTURE_SUFFIXES, list_folder, shared_names
from stages.imaging.inspection import PictureLimits, PictureRefusedError, read_picture

Split = Literal["train", "validation"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation")
_ANY_SHAPE: Final = PictureLimits(
    min_side_px=1, max_pixels=PICTURE_PIXELS, max_aspect=float(PICTURE_PIXELS)
)
"""A config's `prepare` says what is too small; here it matters that it is a picture at all."""

_decoding = threading.Lock()  # one picture of 100 megapixels at a time, not one per request


@dataclass(frozen=True)
class SentFile:
    """A file of a request: its name, its bytes as base64, and what they should hash to."""

    name: str
    data: str
    sha256: str | None


@dataclass(frozen=True)
class Dataset:
    """Where the pictures of a dataset lie; without validation pictures both folders are one."""

    images: Path
    validation_images: Path
    has_validation: bool


def add_files(
    inbox: Inbox, dataset: str, files: Sequence[SentFile], split: Split, concept: str
) -> dict[str, Any]:
    """Put pictures and captions into a dataset, made where it is missing; all of them or none.

    Raises:
        RequestError: a name, a size, a hash, a picture or a caption cannot be accepted, or a file
            of that name is there already; all are listed.
    """
    top = place_of(inbox, "dataset", dataset)
    if concept:
        require_name("concept", concept)
    _require_call(files)
    with workbench(inbox) as bench:
        _receive(bench, files)
        with changing(inbox):
            if not top.exists():
                require_new(inbox, "dataset", dataset)
            _place(inbox, bench, top, PurePosixPath(split, concept))
    return describe(inbox, dataset)


def describe(inbox: Inbox, dataset: str) -> dict[str, Any]:
    """Return the files of a dataset, by split, and their size."""
    top = existing(inbox, "dataset", dataset)
    found = _files(top)
    size = sum(path.stat().st_size for path in found)
    described: dict[str, Any] = {"dataset": dataset, "files": len(found), "bytes": size}
    for split in SPLITS:
        mine = [path for path in found if _split_of(path, top) == split]
        described[split] = [path.relative_to(top / split).as_posix() for path in mine]
    return described


def summaries(inbox: Inbox) -> list[dict[str, Any]]:
    """Return all datasets: how many pictures and captions each split has, and the size."""
    rows = []
    for name in names(inbox, "dataset"):
        top = existing(inbox, "dataset", name)
        found = _files(top)
        row: dict[str, Any] = {"dataset": name, "bytes": sum(path.stat().st_size for path in found)}
        for split in SPLITS:
            mine = [path for path in found if _split_of(path, top) == split]
            captions = sum(path.suffix.lower() == CAPTION_SUFFIX for path in mine)
            row[split] = {"pictures": len(mine) - captions, "captions": captions}
        rows.append(row)
    return rows


def read_dataset(inbox: Inbox, dataset: str) -> Dataset:
    """Return the folders of a dataset for `prepare`.

    Raises:
        RequestError: there is no such dataset, it has no training pictures, or a link is in it.
    """
    top = existing(inbox, "dataset", dataset)
    for path in sorted(top.rglob("*")):
        require_no_link(inbox.root, path)
    train, validation = (top / split for split in SPLITS)
    if not train.is_dir():
        problem = Problem(dataset, "has no training pictures", "Upload some with split: train.")
        raise RequestError("This dataset cannot be trained on", [problem])
    held_out = validation.is_dir()
    return Dataset(train, validation if held_out else train, held_out)


def _require_call(files: Sequence[SentFile]) -> None:
    if not files:
        raise RequestError(
            "No files were sent", [Problem("files", "is empty", "Send one or more.")]
        )
    if len(files) > CALL_FILES:
        what = f"has {len(files)} files, more than the {CALL_FILES} of one call"
        raise RequestError(
            "Too many files", [Problem("files", what, "Send them in several calls.")]
        )
    total = sum(len(file.data) * 3 // 4 for file in files)
    if total > CALL_BYTES:
        what = f"has about {total} bytes, more than the {CALL_BYTES} of one call"
        raise RequestError("Too large", [Problem("files", what, "Send them in several calls.")])


def _receive(bench: Path, files: Sequence[SentFile]) -> None:
    """Write the files that can be accepted; raise RequestError if there is any other."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for number, file in enumerate(files):
        if problem := name_problem(f"files[{number}]", file.name):
            problems.append(problem)
        elif file.name.casefold() in seen:
            problems.append(Problem(file.name, "is sent twice", "Send it once."))
        else:
            seen.add(file.name.casefold())
            problems += _receive_one(bench, file)
    if problems:
        raise RequestError("These files are refused; none was taken", problems)


def _receive_one(bench: Path, file: SentFile) -> list[Problem]:
    suffix = Path(file.name).suffix.lower()
    is_caption = suffix == CAPTION_SUFFIX
    if not is_caption and suffix not in PICTURE_SUFFIXES:
        known = ", ".join([*sorted(PICTURE_SUFFIXES), CAPTION_SUFFIX])
        return [Problem(file.name, "is neither picture nor caption", f"Send one of {known}.")]
    content = decoded(file.name, file.data, CAPTION_BYTES if is_caption else FILE_BYTES)
    if isinstance(content, Problem):
        return [content]
    if problem := content_problem(file.name, content, file.sha256):
        return [problem]
    path = bench / file.name
    path.write_bytes(content)
    problem = _caption_problem(file.name, content) if is_caption else _picture_problem(path)
    return [problem] if problem else []


def _caption_problem(name: str, content: bytes) -> Problem | None:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Problem(name, "is not UTF-8", "Send the caption as UTF-8 text.")
    if not text.strip() or "\0" in text:
        return Problem(name, "is no caption", "Send a line of text.")
    return None


def _picture_problem(path: Path) -> Problem | None:
    try:
        with _decoding:
            read_picture(path, _ANY_SHAPE)
    except PictureRefusedError as error:
        return Problem(path.name, error.problem.what, error.problem.remedy)
    return None


def _place(inbox: Inbox, bench: Path, top: Path, folder: PurePosixPath) -> None:
    """Move checked files into the dataset; as a new dataset in one rename."""
    new = sorted(bench.iterdir())
    have = _files(top) if top.exists() else []
    _require_fits(inbox, have, new)
    target = top / folder
    for place in (target, *(top / split for split in SPLITS)):
        require_no_link(inbox.root, place)
    _require_no_clash(bench, new, top, folder)
    if top.exists():
        for part in (target.parent, target):
            part.mkdir(exist_ok=True)
        for path in new:
            put_file(path, target / path.name)
        return
    with workbench(inbox) as fresh:
        (fresh / "made" / folder).mkdir(parents=True)
        for path in new:
            put_file(path, fresh / "made" / folder / path.name)
        (fresh / "made").rename(top)


def _require_fits(inbox: Inbox, have: Sequence[Path], new: Sequence[Path]) -> None:
    size = sum(path.stat().st_size for path in new)
    total = size + sum(path.stat().st_size for path in have)
    problems = []
    if len(have) + len(new) > DATASET_FILES:
        what = f"would have {len(have) + len(new)} files, more than {DATASET_FILES}"
        problems.append(Problem("dataset", what, "Begin another."))
    if total > DATASET_BYTES:
        what = f"would have {total} bytes, more than {DATASET_BYTES}"
        problems.append(Problem("dataset", what, "Begin another."))
    if problems:
        raise RequestError("The dataset is full; nothing was taken", problems)
    require_space(inbox, size)


def _require_no_clash(bench: Path, new: Sequence[Path], top: Path, folder: PurePosixPath) -> None:
    """Raise where a name is taken, or two pictures would be one in every later table."""
    problems = [
        Problem(path.name, "is in the dataset already", "Nothing is replaced: take another name.")
        for path in new
        if _is_taken(top / folder, path.name)
    ]
    split = top / folder.parts[0]
    other = top / ("validation" if folder.parts[0] == "train" else "train")
    pictures = [path for path in new if path.suffix.lower() in PICTURE_SUFFIXES]
    # As they will lie: the rules of `prepare` for names look at folders.
    there = bench / "there"
    placed = [there.joinpath(*folder.parts[1:]) / path.name for path in pictures]
    for root, called in ((split, "this split"), (other, "the other split")):
        if root.is_dir():
            clashes = shared_names(list_folder(root).pictures, root, placed, there)
            problems += [
                Problem(each.path.name, f"has the name of a picture of {called}", "Rename it.")
                for each in clashes
            ]
    stems: dict[str, str] = {}
    for path in pictures:
        first = stems.setdefault(path.stem.casefold(), path.name)
        if first != path.name:
            problems.append(Problem(path.name, f"has the name of {first}", "Rename one of them."))
    if problems:
        raise RequestError("These files are refused; none was taken", sorted(set(problems)))


def _is_taken(folder: Path, name: str) -> bool:
    if not folder.is_dir():
        return False
    return name.casefold() in {path.name.casefold() for path in folder.iterdir()}


def _files(top: Path) -> list[Path]:
    return sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())


def _split_of(path: Path, top: Path) -> str:
    return path.relative_to(top).parts[0]
