"""A Hugging Face Hub on loopback: enough of its API for the real client, with faults to order.

The repository's name decides what happens: `tests/whole` is served as it should be, the others as
their names say. Answers follow the real Hub's headers (huggingface_hub, utils/_http.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"
GOOD_TOKEN, FINE_TOKEN = "hf_good_secret_token", "hf_fine_grained_secret_token"
_TREE = re.compile(r"/api/models/(tests/[^/]+)/tree/([^/?]+)")
_FILE = re.compile(r"/(tests/[^/]+)/resolve/([^/]+)/([^?]+)")
_LFS_SUFFIX = ".safetensors"


@dataclass
class Served:
    """What the server gave: paths asked for, bytes sent per file, tokens seen."""

    requests: list[str] = field(default_factory=list)
    body_bytes: dict[str, int] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, Served]]:
    """Yield the address of a Hub that serves `folder` as every repository, and its record."""
    served = Served()

    class Handler(_Handler):
        root = folder
        record = served

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", served
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    record: Served
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def _answer(self, *, body: bool) -> None:
        self.record.requests.append(f"{self.command} {self.path}")
        match = _TREE.match(self.path) or _FILE.match(self.path)
        if match is None:
            return self._refuse(404, "EntryNotFound", "no such address")
        if self._denied(match[1], match[2]):
            return None
        if match.re is _TREE:
            return self._send_tree()
        return self._send_file(match[1], match[3], body=body)

    def _denied(self, repository: str, revision: str) -> bool:
        """Answer as the real Hub does where something is wrong with repository or token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (GOOD_TOKEN, FINE_TOKEN):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository == "tests/gated" and not token:
            self._refuse(401, "GatedRepo", "Access to model tests/gated is restricted.")
        elif repository == "tests/gated" and token == FINE_TOKEN:
            self._refuse(
                403,
                "",
                "Please enable access to public gated repositories in your fine-grained token "
                "settings to view this repository.",
            )
        elif repository == "tests/gated":
            self._refuse(403, "GatedRepo", "you are not in the authorized list")
        elif repository == "tests/absent":
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository == "tests/forbidden":
            self._refuse(403, "", "Forbidden")
        elif repository == "tests/broken":
            self._refuse(500, "", "Internal Error")
        elif revision != REVISION:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return False
        return True

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def _send_tree(self) -> None:
        entries = []
        for path in self._files():
            data = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {
                "type": "file",
                "path": path.relative_to(self.root).as_posix(),
                "size": len(data),
                "oid": blob,
            }
            if path.suffix == _LFS_SUFFIX:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        self._send(json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _send_file(self, repository: str, name: str, *, body: bool) -> None:
        path = self.root / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        data = path.read_bytes()
        is_large = path.suffix == _LFS_SUFFIX
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        etag = hashlib.sha256(data).hexdigest() if is_large else blob
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if repository == "tests/altered" and is_large:
            data = data[:-1] + bytes([data[-1] ^ 1])
        cut = repository == "tests/cut" and is_large and name not in self.record.cut and body
        if cut:
            self.record.cut.add(name)
        return self._send(data, headers, name if body else None, body=body, cut=cut)

    def _send(
        self,
        data: bytes,
        headers: dict[str, str],
        name: str | None = None,
        *,
        body: bool = True,
        cut: bool = False,
    ) -> None:
        start = 0
        if (wanted := self.headers.get("Range")) and body:
            self.record.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        part = data[start : start + (len(data) - start) // 2] if cut else data[start:]
        self.wfile.write(part)
        if name is not None:
            self.record.body_bytes[name] = self.record.body_bytes.get(name, 0) + len(part)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
