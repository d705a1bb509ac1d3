"""Pinned downloads from the Hugging Face Hub: only what is wanted, and checked to the byte.

The token comes from HF_TOKEN or from the login that huggingface_hub keeps. Where everything is in
the cache already, the Hub is not asked at all.
"""

from __future__ import annotations

import glob
import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, cast

import huggingface_hub
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from huggingface_hub.hf_api import RepoFile

from stages.contracts.errors import Problem, WeightsError
from stages.families.hub_problems import (
    FAILURES,
    NO_CONNECTION,
    cache_folder,
    hub_problem,
    page_of,
    token_problem,
)
from stages.families.hub_session import bound_waiting
from stages.runtime.files import git_blob_hash, sha256_file
from stages.runtime.progress import in_gigabytes, track, transfer_bar

SPARE_BYTES: Final = 1 << 30
"""Space that a download leaves free, for what the run itself writes."""

_CONTENT_HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256_DIGITS: Final = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class HubFile:
    """One file of a repository: POSIX path, size, and what the Hub states of its content.

    `stated` is the SHA-256 of a large file (64 digits), the git blob hash of a small one (40), or
    empty where only the size is known.
    """

    path: str
    size_bytes: int
    stated: str


@dataclass(frozen=True)
class Snapshot:
    """A folder in the Hub's cache, and the SHA-256 of its checked files by POSIX path."""

    folder: Path
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class _Pin:
    """A repository at a commit, and shell patterns of what is wanted of it."""

    repository: str
    revision: str
    patterns: tuple[str, ...]
    ignored: tuple[str, ...]


def download(
    repository: str, revision: str, patterns: Sequence[str], ignored: Sequence[str] = ()
) -> Path:
    """Return the folder in the Hub's cache that holds the matching files of a repository.

    What arrives is compared with the hashes that the Hub states, see `download_checked`; what was
    there is compared by size.
    """
    pin = _Pin(repository, revision, tuple(patterns), tuple(ignored))
    return _snapshot(pin, every=False).folder


def download_checked(
    repository: str, revision: str, patterns: Sequence[str], ignored: Sequence[str] = ()
) -> Snapshot:
    """Return the folder of the matching files, every one of them compared with the Hub's hash.

    Files that are there are not downloaded again, and a connection that breaks is taken up where
    it stopped (to 10 MiB), five times in a row. A file that differs is fetched once more.

    Args:
        repository: such as black-forest-labs/FLUX.1-dev.
        revision: commit hash, 40 hexadecimal digits.
        patterns: shell patterns of the paths that are wanted; one without * must be there.
        ignored: shell patterns of those that are not.

    Raises:
        WeightsError: the files are not to be had; says why, and what to do.
    """
    return _snapshot(_Pin(repository, revision, tuple(patterns), tuple(ignored)), every=True)


def _snapshot(pin: _Pin, *, every: bool) -> Snapshot:
    wanted = _wanted(pin)
    lacking = [file for file in wanted if not _is_whole(pin, file)]
    _transfer(pin, lacking)
    sha256: dict[str, str] = {}
    broken = _broken(pin, wanted if every else lacking, sha256)
    if broken:
        _log.warning("%s: %d files arrived broken, once more", pin.repository, len(broken))
        _discard(pin, broken)
        _transfer(pin, broken)
        if still := _broken(pin, broken, sha256):
            _discard(pin, still)
            raise _failed(pin, [_differs(pin, file, sha256[file.path]) for file in still])
    return Snapshot(_folder(pin), sha256)


def _wanted(pin: _Pin) -> list[HubFile]:
    """Return the matching files of the repository; without network those of the cache."""
    remembered = _remembered(pin)
    if remembered is not None:
        wanted = _matching(pin, remembered)
        if all(_is_whole(pin, file) for file in wanted):
            return wanted
    if problem := token_problem():
        raise _failed(pin, [problem])
    bound_waiting()
    try:
        tree = huggingface_hub.HfApi().list_repo_tree(
            pin.repository, recursive=True, revision=pin.revision
        )
        listing = [_listed(entry) for entry in tree if isinstance(entry, RepoFile)]
    except NO_CONNECTION as error:
        # A cache that an older huggingface_hub made has no listing: what lies there is taken, and
        # the caller sees whether a part is missing.
        if remembered is None and (there := _on_disk(pin)):
            return _matching(pin, there)
        raise _failed(pin, [hub_problem(error, pin.repository, pin.revision)]) from None
    except FAILURES as error:
        # Without the cause: it holds the request, and with it the token.
        raise _failed(pin, [hub_problem(error, pin.repository, pin.revision)]) from None
    return _matching(pin, listing)


def _matching(pin: _Pin, listing: Iterable[HubFile]) -> list[HubFile]:
    files = {file.path: file for file in listing}
    paths = [
        path
        for path in sorted(files)
        if any(fnmatchcase(path, pattern) for pattern in pin.patterns)
        and not any(fnmatchcase(path, pattern) for pattern in pin.ignored)
    ]
    absent = [pattern for pattern in pin.patterns if "*" not in pattern and pattern not in files]
    if not paths and not absent:
        absent = [" or ".join(pin.patterns)]
    if absent:
        remedy = f"Look at {page_of(pin.repository)}/tree/{pin.revision}."
        what = f"not in the repository at revision {pin.revision}"
        raise _failed(pin, [Problem(f"{pin.repository}/{name}", what, remedy) for name in absent])
    return [files[path] for path in paths]


def _remembered(pin: _Pin) -> list[HubFile] | None:
    """Return the listing that an earlier download left in the cache."""
    try:
        tree = huggingface_hub.get_cached_repo_tree(pin.repository, revision=pin.revision)
    except CachedRepoTreeNotFoundError:
        return None
    except FAILURES as error:
        raise _failed(pin, [hub_problem(error, pin.repository, pin.revision)]) from None
    # The remembered listing has no SHA-256, but the cache names each file's content by it.
    return [HubFile(e.path, e.size, _stated_by_cache(_folder(pin) / e.path)) for e in tree]


def _on_disk(pin: _Pin) -> list[HubFile]:
    folder = _folder(pin)
    return [
        HubFile(path.relative_to(folder).as_posix(), path.stat().st_size, _stated_by_cache(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _listed(entry: RepoFile) -> HubFile:
    return HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)


def _stated_by_cache(path: Path) -> str:
    """Return the hash by which the cache names a file's content, as the Hub stated it."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if _CONTENT_HASH.fullmatch(name) else ""


def _folder(pin: _Pin) -> Path:
    """Return where huggingface_hub puts the files of a commit (its docs, "manage your cache")."""
    name = f"models--{pin.repository.replace('/', '--')}"
    return cache_folder() / name / "snapshots" / pin.revision


def _is_whole(pin: _Pin, file: HubFile) -> bool:
    path = _folder(pin) / file.path
    return path.is_file() and path.stat().st_size == file.size_bytes


def _transfer(pin: _Pin, files: Sequence[HubFile]) -> None:
    """Download files, several at a time, if the disk has room for them."""
    if not files:
        return
    _require_space(pin, files)
    # A file of the wrong size counts as present for huggingface_hub.
    _discard(pin, files)
    size = in_gigabytes(sum(file.size_bytes for file in files))
    _log.info("%s: downloading %d files, %s", pin.repository, len(files), size)
    try:
        huggingface_hub.snapshot_download(
            pin.repository,
            revision=pin.revision,
            allow_patterns=[glob.escape(file.path) for file in files],
            tqdm_class=cast(Any, transfer_bar()),
        )
    except FAILURES as error:
        raise _failed(pin, [hub_problem(error, pin.repository, pin.revision)]) from None


def _require_space(pin: _Pin, files: Sequence[HubFile]) -> None:
    cache = cache_folder()
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    needed = sum(file.size_bytes for file in files) + SPARE_BYTES
    free = shutil.disk_usage(disk).free
    if needed > free:
        what = f"needs {in_gigabytes(needed)} in {cache}, where {in_gigabytes(free)} are free"
        remedy = "Free space, or set HF_HOME to a folder on another disk."
        raise _failed(pin, [Problem(pin.repository, what, remedy)])


def _broken(pin: _Pin, files: Sequence[HubFile], sha256: dict[str, str]) -> list[HubFile]:
    """Return the files that are not what the Hub states; adds the SHA-256 of all to `sha256`."""
    broken = []
    for file in track(files, len(files), f"{pin.repository}: hashes"):
        path = _folder(pin) / file.path
        sha256[file.path] = sha256_file(path)
        found = sha256[file.path] if len(file.stated) == _SHA256_DIGITS else git_blob_hash(path)
        if file.stated and found != file.stated:
            broken.append(file)
    return broken


def _discard(pin: _Pin, files: Sequence[HubFile]) -> None:
    """Remove broken copies from the cache, so that no program takes them for whole ones."""
    for file in files:
        path = _folder(pin) / file.path
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _differs(pin: _Pin, file: HubFile, found: str) -> Problem:
    kind = "SHA-256" if len(file.stated) == _SHA256_DIGITS else "git hash"
    what = f"arrived broken twice (SHA-256 {found}, the Hub states {kind} {file.stated})"
    remedy = "Run `dvc repro` again later, and check proxy and disk; the broken file is removed."
    return Problem(f"{pin.repository}/{file.path}", what, remedy)


def _failed(pin: _Pin, problems: Sequence[Problem]) -> WeightsError:
    return WeightsError(f"{pin.repository} cannot be downloaded", problems)
