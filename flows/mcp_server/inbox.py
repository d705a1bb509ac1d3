"""The one folder that requests write into, and how something gets into it: whole, or not at all.

    datasets/NAME/{train,validation}/[CONCEPT/]FILE
    configs/NAME.yaml
    adapters/NAME.safetensors
    .staging/<process>/   what is not checked yet

Everything is made in a staging folder and appears under its name by one rename or link. Nothing is
replaced: a name is taken once. There are no links in an inbox, and none is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from flows.mcp_server.limits import ENTRIES, FREE_BYTES
from flows.mcp_server.requests import RequestError, require_name
from stages.contracts.errors import BlocklensError, Problem
from stages.contracts.params.fields import QUOTABLE

Kind = Literal["dataset", "config", "adapter"]
_FOLDERS: Final[dict[Kind, tuple[str, str]]] = {
    "dataset": ("datasets", ""),
    "config": ("configs", ".yaml"),
    "adapter": ("adapters", ".safetensors"),
}
_STAGING: Final = ".staging"
_OWNER: Final = "owner.lock"


class InboxError(BlocklensError, RuntimeError):
    """The folder of the inbox cannot be used."""


@dataclass(frozen=True)
class Inbox:
    """The folder, absolute and free of links, and this process's own staging folder in it."""

    root: Path
    staging: Path


@contextlib.contextmanager
def open_inbox(folder: Path) -> Iterator[Inbox]:
    """Give the inbox in `folder`, made where it is missing; the staging folder goes at the end.

    What servers that died have left in theirs is removed.

    Raises:
        InboxError: stages could not be given a path in it, or something else lies in its place.
    """
    root = folder.resolve()
    if not QUOTABLE.fullmatch(str(root)):
        raise InboxError(
            f"{root}: the path of the inbox goes into the commands of stages, and has "
            "characters that a shell would interpret. Name another in BLOCKLENS_INBOX"
        )
    try:
        for name in (_STAGING, *(name for name, _ in _FOLDERS.values())):
            (root / name).mkdir(parents=True, exist_ok=True)
            require_no_link(root, root / name)
    except (FileExistsError, NotADirectoryError) as error:
        raise InboxError(f"{root}: a file lies where a folder of the inbox belongs") from error
    _remove_abandoned(root / _STAGING)
    staging = Path(tempfile.mkdtemp(dir=root / _STAGING))
    with (staging / _OWNER).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield Inbox(root, staging)
        finally:
            shutil.rmtree(staging)


def place_of(inbox: Inbox, kind: Kind, name: str) -> Path:
    """Return where something of this name lies or would lie.

    Raises:
        RequestError: the name breaks the grammar, or a link lies there.
    """
    folder, suffix = _FOLDERS[kind]
    path = inbox.root / folder / f"{require_name(kind, name)}{suffix}"
    require_no_link(inbox.root, path)
    return path


def existing(inbox: Inbox, kind: Kind, name: str) -> Path:
    """Return where something of this name lies.

    Raises:
        RequestError: there is nothing.
    """
    path = place_of(inbox, kind, name)
    if not path.exists():
        have = ", ".join(names(inbox, kind)[:10]) or "none"
        problem = Problem(kind, f"there is no {name}", f"There are: {have}.")
        raise RequestError(f"This {kind} is not here", [problem])
    return path


def names(inbox: Inbox, kind: Kind) -> list[str]:
    """Return the names of all datasets, configs or LoRAs, sorted; links are left out."""
    folder, suffix = _FOLDERS[kind]
    entries = (inbox.root / folder).iterdir()
    return sorted(
        path.name.removesuffix(suffix)
        for path in entries
        if path.name.endswith(suffix) and not path.name.startswith(".") and not path.is_symlink()
    )


def require_new(inbox: Inbox, kind: Kind, name: str) -> Path:
    """Return where something new may be put.

    Raises:
        RequestError: the name is taken, in whatever capitals, or there are too many.
    """
    path = place_of(inbox, kind, name)
    have = names(inbox, kind)
    taken = {each.casefold(): each for each in have}.get(name.casefold())
    if taken is not None:
        problem = Problem(kind, f"{taken} is here already", "Nothing is replaced: take a new name.")
        raise RequestError(f"This {kind} is refused", [problem])
    if len(have) >= ENTRIES:
        problem = Problem(kind, f"there are {len(have)} already", "Remove some on the server.")
        raise RequestError(f"This {kind} is refused", [problem])
    return path


def require_space(inbox: Inbox, size_bytes: int) -> None:
    """Raise RequestError where the disk would have too little room left."""
    free = shutil.disk_usage(inbox.root).free
    if size_bytes + FREE_BYTES > free:
        what = f"{free} bytes are free, {size_bytes} are to come and {FREE_BYTES} stay free"
        raise RequestError("The disk is full", [Problem("inbox", what, "Make room on the server.")])


@contextlib.contextmanager
def changing(inbox: Inbox) -> Iterator[None]:
    """Hold the inbox while something is put into it: several servers may serve one."""
    with (inbox.root / _STAGING / "inbox.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def workbench(inbox: Inbox) -> Iterator[Path]:
    """Give an empty folder on the inbox's disk, removed at the end."""
    with tempfile.TemporaryDirectory(dir=inbox.staging) as folder:
        yield Path(folder)


def put_file(made: Path, place: Path) -> None:
    """Let a checked file appear in its place, whole; it must not be there yet.

    Raises:
        FileExistsError: it is.
    """
    _flush(made)
    os.link(made, place, follow_symlinks=False)
    made.unlink()
    _flush(place.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_no_link(root: Path, path: Path) -> None:
    """Raise RequestError where `path`, or a folder between it and `root`, is a link."""
    for part in (path, *path.parents):
        if part == root:
            return
        if part.is_symlink():
            problem = Problem(
                part.relative_to(root).as_posix(), "is a link", "Put the files themselves there."
            )
            raise RequestError("Links are not followed", [problem])


def _remove_abandoned(staging: Path) -> None:
    for folder in staging.iterdir():
        owner = folder / _OWNER
        if not owner.is_file():
            continue  # the lock of the inbox, or a folder that is just being made
        with owner.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder, ignore_errors=True)
