"""LoRAs that can be evaluated or fetched: those sent here, and those that jobs have made.

What a job has made is named by the `files` that its run left in Prefect, with their MD5, and lies
in DVC's cache under it; later runs do not change it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flows.mcp_server.inbox import Inbox, existing, names
from flows.mcp_server.limits import DOWNLOAD_BYTES
from flows.mcp_server.requests import RequestError, require_name
from stages.contracts.errors import Problem

_JOB_MODEL: Final = re.compile(
    r"(?P<job>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(?P<stem>.+)"
)
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_SUFFIX: Final = ".safetensors"


def is_of_a_job(name: str) -> bool:
    """Return whether a name is that of a LoRA which a job has made."""
    return _JOB_MODEL.fullmatch(name) is not None


def job_of(name: str) -> tuple[str, str]:
    """Return the job that made a LoRA of this name, and which of its files it is."""
    match = _JOB_MODEL.fullmatch(name)
    assert match is not None
    return match["job"], match["stem"]


def sent_models(inbox: Inbox) -> list[dict[str, Any]]:
    """Return the LoRAs that were sent here."""
    return [
        {"model": name, "from": "upload", "bytes": existing(inbox, "adapter", name).stat().st_size}
        for name in names(inbox, "adapter")
    ]


def job_models(cache: Path, job: str, files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the LoRAs among the files of a job, as far as the cache still has them."""
    return [
        {
            "model": f"{job}.{_stem(file)}",
            "from": f"job {job}",
            "bytes": path.stat().st_size,
            "file": str(file["path"]),
        }
        for file in files
        if str(file["path"]).endswith(_SUFFIX) and (path := cached(cache, str(file["md5"])))
    ]


def find_job_model(cache: Path, name: str, files: Sequence[Mapping[str, Any]]) -> Path:
    """Return where the LoRA of a job lies.

    Raises:
        RequestError: the job has none of this name, or the cache has it no more.
    """
    _, stem = job_of(name)
    for file in files:
        if str(file["path"]).endswith(_SUFFIX) and _stem(file) == stem:
            if path := cached(cache, str(file["md5"])):
                return path
            what, remedy = "is not in DVC's cache any more", "Run the job again."
            raise RequestError("This model is not here", [Problem(name, what, remedy)])
    problem = Problem(name, "its job has made no such LoRA", "list-models has what there is.")
    raise RequestError("This model is not here", [problem])


def find_sent_model(inbox: Inbox, name: str) -> Path:
    """Return where a LoRA that was sent lies; RequestError where there is none."""
    return existing(inbox, "adapter", require_name("model", name))


def read_piece(path: Path, offset: int) -> dict[str, Any]:
    """Return the bytes of a LoRA from `offset` on, base64, and where the next piece begins.

    Raises:
        RequestError: the offset is outside of the file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not 0 <= offset < status.st_size:
            what = f"is {offset}, the file has {status.st_size} bytes"
            raise RequestError("No such piece", [Problem("offset", what, "Begin with 0.")])
        file.seek(offset)
        content = file.read(DOWNLOAD_BYTES)
    end = offset + len(content)
    return {
        "offset": offset,
        "bytes": len(content),
        "total_bytes": status.st_size,
        "sha256": _sha256(path, status.st_size, status.st_mtime_ns),
        "next_offset": end if end < status.st_size else None,
        "data": base64.b64encode(content).decode("ascii"),
    }


def cached(cache: Path, md5: str) -> Path | None:
    """Return the file of this MD5 in DVC's cache, or None (layout of DVC 3: files/md5/ab/…)."""
    if not _MD5.fullmatch(md5):
        return None
    path = cache / "files" / "md5" / md5[:2] / md5[2:]
    return path if path.is_file() and not path.is_symlink() else None


def md5_of(path: Path) -> str:
    """Return the MD5 by which the cache names a file of it."""
    return path.parent.name + path.name


def _stem(file: Mapping[str, Any]) -> str:
    return Path(str(file["path"])).stem


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _changed_ns: int) -> str:
    """Return the hash of a file; size and time of change tell files of one name apart."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
