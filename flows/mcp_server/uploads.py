"""A LoRA in pieces: begun with its size, sent in order, taken when it is whole and checked."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from flows.mcp_server.adapter_header import adapter_problem
from flows.mcp_server.inbox import Inbox, changing, put_file, require_new, require_space
from flows.mcp_server.limits import ADAPTER_BYTES, CHUNK_BYTES, OPEN_UPLOADS
from flows.mcp_server.models import is_of_a_job
from flows.mcp_server.requests import RequestError, decoded, sha256_problem, shown
from stages.contracts.errors import Problem

FORGOTTEN_AFTER_S: Final = 3600.0
"""An upload that got no piece for so long gives its place to another."""


@dataclass
class Upload:
    """A LoRA on its way: what it is to be called, how large, its hash, and what has come."""

    name: str
    total_bytes: int
    sha256: str | None
    path: Path
    received_bytes: int = 0
    chunks: int = 0
    last_s: float = field(default_factory=time.monotonic)


class Uploads:
    """The open uploads of a server; they end with it."""

    def __init__(self, inbox: Inbox) -> None:
        """Begin without any."""
        self._inbox = inbox
        self._open: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def start(self, name: str, total_bytes: int, sha256: str | None) -> dict[str, Any]:
        """Open an upload and return its id.

        Raises:
            RequestError: name, size or hash cannot be accepted, or too many uploads are open.
        """
        with self._lock:
            require_new(self._inbox, "adapter", name)
            problems = [_size_problem(total_bytes), sha256_problem("sha256", sha256)]
            if is_of_a_job(name):
                what = f"{name} is how the LoRA of a job is called"
                problems.append(Problem("name", what, "Take another name."))
            if found := [problem for problem in problems if problem]:
                raise RequestError("This upload is refused", found)
            self._forget()
            to_come = sum(each.total_bytes - each.received_bytes for each in self._open.values())
            require_space(self._inbox, to_come + total_bytes)
            if len(self._open) >= OPEN_UPLOADS:
                problem = Problem("uploads", f"{len(self._open)} are open", "Finish one first.")
                raise RequestError("This upload is refused", [problem])
            upload_id = uuid4().hex
            path = self._inbox.staging / f"upload-{upload_id}"
            path.touch()
            self._open[upload_id] = Upload(name, total_bytes, sha256, path)
        return {"upload": upload_id, "chunk_bytes": CHUNK_BYTES, "next_index": 0}

    def append(self, upload_id: str, index: int, data: str) -> dict[str, Any]:
        """Take the next piece and return what has come so far.

        Raises:
            RequestError: there is no such upload, it is another piece's turn, or the piece is
                not base64, empty, too large, more than was to come, or does not fit on the disk.
                Nothing is taken then.
        """
        with self._lock:
            upload = self._find(upload_id)
            where = f"chunk {index}"
            if index != upload.chunks:
                what = f"is not the next one, which is {upload.chunks}"
                raise _refused(Problem(where, what, "Send the pieces in order, each once."))
            content = decoded(where, data, CHUNK_BYTES)
            if isinstance(content, Problem):
                raise _refused(content)
            if (size := upload.received_bytes + len(content)) > upload.total_bytes:
                what = f"makes {size} bytes, more than the {upload.total_bytes} announced"
                raise _refused(Problem(where, what, "Begin again with the true size."))
            _write_piece(upload, where, content)
            upload.received_bytes, upload.chunks, upload.last_s = (
                size,
                upload.chunks + 1,
                time.monotonic(),
            )
            return {"received_bytes": size, "next_index": upload.chunks}

    def finish(self, upload_id: str) -> dict[str, Any]:
        """Check the whole file, put it among the LoRAs, and return its name, size and hash.

        Raises:
            RequestError: bytes are missing, which can still be sent; or the hash is another or
                the file is no LoRA, after which the upload is gone.
        """
        with self._lock:
            upload = self._find(upload_id)
            if upload.received_bytes != upload.total_bytes:
                what = f"has {upload.received_bytes} of {upload.total_bytes} bytes"
                raise _refused(Problem(upload.name, what, f"Send chunk {upload.chunks}."))
            del self._open[upload_id]
            try:
                with upload.path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if upload.sha256 not in (None, found):
                    what = f"arrived with SHA-256 {found}, not {upload.sha256}"
                    raise _refused(Problem(upload.name, what, "Send it again."))
                if problem := adapter_problem(upload.path, upload.name):
                    raise _refused(problem)
                with changing(self._inbox):
                    put_file(upload.path, require_new(self._inbox, "adapter", upload.name))
            finally:
                upload.path.unlink(missing_ok=True)
        return {"model": upload.name, "bytes": upload.total_bytes, "sha256": found}

    def _find(self, upload_id: str) -> Upload:
        upload = self._open.get(upload_id)
        if upload is None:
            what = f"{shown(upload_id)} is not open"
            raise _refused(Problem("upload", what, "Begin with upload-lora-chunked-start."))
        return upload

    def _forget(self) -> None:
        deadline = time.monotonic() - FORGOTTEN_AFTER_S
        for upload_id in [each for each, upload in self._open.items() if upload.last_s < deadline]:
            self._open.pop(upload_id).path.unlink(missing_ok=True)


def _write_piece(upload: Upload, where: str, content: bytes) -> None:
    """Write a piece behind those that have come, all of it or none."""
    try:
        with upload.path.open("ab") as file:
            file.write(content)
    except OSError as error:
        os.truncate(upload.path, upload.received_bytes)
        what = f"could not be written ({error.strerror})"
        problem = Problem(where, what, "Make room on the server and send it again.")
        raise _refused(problem) from error


def _size_problem(total_bytes: int) -> Problem | None:
    if 0 < total_bytes <= ADAPTER_BYTES:
        return None
    what = f"is {total_bytes}, expected 1 to {ADAPTER_BYTES}"
    return Problem("total_bytes", what, "State the size of the file.")


def _refused(problem: Problem) -> RequestError:
    return RequestError("This upload is refused", [problem])
