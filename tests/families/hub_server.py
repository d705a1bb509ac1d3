"""A Hugging Face Hub on loopback: enough of its API for the real client, with faults to order.

The repository's name decides what happens: `tests/whole` is served as it should be, the others as
FAULTS says. Answers follow the real Hub's headers (huggingface_hub, utils/_http.py and
file_download.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"
NAMES = {"main": REVISION, "v1.0": REVISION, REVISION[:7]: REVISION, REVISION: REVISION}
"""What a branch, a tag and a short hash stand for."""

GOOD_TOKEN, FINE_TOKEN = "hf_good_secret_token", "hf_fine_grained_secret_token"
FAULTS = {
    "tests/gated": "nobody's licence is accepted; the fine-grained token may not read it at all",
    "tests/gated-files": "the same, but the listing is public",
    "tests/absent": "is not there",
    "tests/forbidden": "403 without a reason",
    "tests/broken": "500",
    "tests/busy": "429",
    "tests/stuck": "the listing is never answered",
    "tests/stalled": "large files stop at half, the connection stays open",
    "tests/cut": "large files are cut at half, once",
    "tests/altered": "large files have a wrong last byte",
    "tests/altered-once": "large files have a wrong last byte the first time",
    "tests/altered-small": "small files have a wrong last byte",
    "tests/moved": "large files are redirected to another host",
    "tests/slow": "large files drip",
    "tests/huge": "the listing states a billion gigabytes",
}
_TREE = re.compile(r"/api/models/(tests/[^/]+)/tree/([^/?]+)")
_COMMIT = re.compile(r"/api/models/(tests/[^/]+)/revision/([^/?]+)")
_FILE = re.compile(r"/(tests/[^/]+)/resolve/([^/]+)/([^?]+)")
_STORED = re.compile(r"/stored/(tests/[^/]+)/([^?]+)")
_LFS_SUFFIX = ".safetensors"
_DRIP_BYTES, _DRIP_S = 3 << 20, 0.1


@dataclass
class Served:
    """What the server gave: requests, bytes of files sent, ranges asked for, tokens seen."""

    requests: list[str] = field(default_factory=list)
    body_bytes: Counter[str] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    storage: str = ""
    tokens: set[str] = field(default_factory=set)
    storage_tokens: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hub(folder: Path, good_token: str = GOOD_TOKEN) -> Iterator[tuple[str, Served]]:
    """Yield the address of a Hub that serves `folder` as every repository, and its record."""
    served = Served()

    class Handler(_Handler):
        root = folder
        record = served
        known = good_token

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub_address, served.storage = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub_address, served
    finally:
        served.ended.set()
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    record: Served
    known: str
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def _answer(self, *, body: bool) -> None:
        self.record.requests.append(f"{self.command} {self.path}")
        if match := _STORED.match(self.path):
            self.record.storage_tokens.append(self.headers.get("Authorization", ""))
            return self._send_file(match[1], match[2], body=body)
        match = _TREE.match(self.path) or _COMMIT.match(self.path) or _FILE.match(self.path)
        if match is None:
            return self._refuse(404, "EntryNotFound", "no such address")
        if self._denied(match[1], match[2], listing=match.re is not _FILE):
            return None
        if match.re is _COMMIT:
            commit = {"id": match[1], "modelId": match[1], "sha": NAMES[match[2]], "siblings": []}
            return self._send_json(commit)
        if match.re is _TREE:
            return self._send_tree(match[1])
        if match[1] == "tests/moved" and match[3].endswith(_LFS_SUFFIX):
            return self._redirect(match[1], match[3])
        return self._send_file(match[1], match[3], body=body)

    def _denied(self, repository: str, revision: str, *, listing: bool) -> bool:
        """Answer as the real Hub does where something is wrong with repository or token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.record.tokens.add(token)
        gated = repository == "tests/gated" or (repository == "tests/gated-files" and not listing)
        if token and token not in (self.known, FINE_TOKEN):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif gated and not token:
            self._refuse(401, "GatedRepo", f"Access to model {repository} is restricted.")
        elif gated and token == FINE_TOKEN:
            self._refuse(
                403,
                "",
                "Please enable access to public gated repositories in your fine-grained token "
                "settings to view this repository.",
            )
        elif gated:
            self._refuse(403, "GatedRepo", "you are not in the authorized list")
        elif repository == "tests/absent":
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository == "tests/forbidden":
            self._refuse(403, "", "Forbidden")
        elif repository == "tests/broken":
            self._refuse(500, "", "Internal Error")
        elif repository == "tests/busy":
            self._refuse(429, "", "Too many requests", {"Retry-After": "0"})
        elif repository == "tests/stuck":
            self.record.ended.wait()
            self.close_connection = True
        elif revision not in NAMES:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return False
        return True

    def _refuse(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_tree(self, repository: str) -> None:
        entries = []
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            data = path.read_bytes()
            size = 10**18 if repository == "tests/huge" else len(data)
            name = path.relative_to(self.root).as_posix()
            entry = {"type": "file", "path": name, "size": size, "oid": _blob_hash(data)}
            if path.suffix == _LFS_SUFFIX:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
            entries.append(entry)
        self._send_json(entries)

    def _send_json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _redirect(self, repository: str, name: str) -> None:
        """Send the client to the storage, as the real Hub does with large files."""
        data = (self.root / name).read_bytes()
        self.send_response(302)
        self.send_header("Location", f"{self.record.storage}/stored/{repository}/{name}?sign=abc")
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, repository: str, name: str, *, body: bool) -> None:
        path = self.root / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        data = path.read_bytes()
        is_large = path.suffix == _LFS_SUFFIX
        etag = hashlib.sha256(data).hexdigest() if is_large else _blob_hash(data)
        key = f"{repository}/{name}"
        earlier = self.record.bodies[key]
        self.record.bodies[key] += body
        if _is_altered(repository, is_large, earlier):
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = self._start(key) if body else 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self._send_body(repository, key, data[start:], whole=not is_large or earlier > 0)
        return None

    def _start(self, key: str) -> int:
        wanted = self.headers.get("Range")
        if wanted is None:
            return 0
        self.record.ranges.append((key, wanted))
        return int(wanted.removeprefix("bytes=").split("-")[0])

    def _send_body(self, repository: str, key: str, data: bytes, *, whole: bool) -> None:
        stops = (repository == "tests/cut" and not whole) or repository == "tests/stalled"
        part = data[: len(data) // 2] if stops else data
        self.record.body_bytes[key] += len(part)
        for begin in range(0, len(part), _DRIP_BYTES):
            self.wfile.write(part[begin : begin + _DRIP_BYTES])
            time.sleep(_DRIP_S if repository == "tests/slow" else 0)
        if repository == "tests/stalled":
            self.record.ended.wait()
        if stops:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()


def _is_altered(repository: str, is_large: bool, earlier: int) -> bool:
    if repository == "tests/altered-small":
        return not is_large
    return is_large and (
        repository == "tests/altered" or (repository == "tests/altered-once" and not earlier)
    )


def _blob_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
