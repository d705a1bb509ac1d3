"""The part of the Hub that takes repositories, files and commits, on loopback.

Endpoints and answers as huggingface_hub asks for them (hf_api.py create_repo, model_info and
create_commit, _commit_api.py, lfs.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD_TOKEN, READ_TOKEN = "hf_good_secret_token", "hf_read_only_secret_token"


@dataclass
class Received:
    """What arrived: private flags of repositories, committed files by repository, requests.

    `full` are repositories that take no commit, `closed` those that take no large file; each
    refuses once.
    """

    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    full: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)


@contextmanager
def hub_for_uploads() -> Iterator[tuple[str, Received]]:
    """Yield the address of a Hub that knows GOOD_TOKEN, and what it has received."""
    received = Received()

    class Handler(_Handler):
        record = received

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    record: Received
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def do_PUT(self) -> None:
        body = self._body()
        if self.path.startswith("/closed/"):
            return self._answer(403, {"error": "Request has expired"})
        oid = self.path.removeprefix("/store/")
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {})
        self.record.stored[oid] = body
        return self._answer(200, {})

    def do_GET(self) -> None:
        repository = "/".join(self.path.partition("?")[0].split("/")[3:5])
        private = self.record.private.get(repository)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if private is None or (private and token != GOOD_TOKEN):
            return self._answer(404, {"error": "Repository not found"}, "RepoNotFound")
        return self._answer(200, {"id": repository, "private": private})

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        self.record.requests.append(path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if token not in (GOOD_TOKEN, READ_TOKEN):
            return self._answer(401, {"error": "Invalid credentials"})
        if token == READ_TOKEN:
            return self._answer(403, {"error": "Forbidden"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            repository = path.removeprefix("/").partition(".git/")[0]
            return self._batch(repository, json.loads(body))
        repository = "/".join(path.split("/")[3:5])
        if repository not in self.record.private:
            return self._answer(404, {"error": "Repository not found"}, "RepoNotFound")
        if "/preupload/" in path:
            return self._modes(json.loads(body))
        return self._commit(repository, body)

    def _create(self, asked: dict[str, Any]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        if repository in self.record.private:
            return self._answer(409, {"error": "You already created this model repo"})
        self.record.private[repository] = asked["visibility"] == "private"
        return self._answer(200, {"url": f"{self._address()}/{repository}"})

    def _modes(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "regular" if file["path"].endswith(".md") else "lfs",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, repository: str, asked: dict[str, Any]) -> None:
        place = "closed" if repository in self.record.closed else "store"
        self.record.closed.discard(repository)
        objects = [
            {
                **each,
                "actions": {"upload": {"href": f"{self._address()}/{place}/{each['oid']}"}},
            }
            for each in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, body: bytes) -> None:
        if repository in self.record.full:
            self.record.full.discard(repository)
            return self._answer(403, {"error": "Private repository storage limit reached"})
        files = self.record.files.setdefault(repository, {})
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                files[value["path"]] = self.record.stored[value["oid"]]
        address = f"{self._address()}/{repository}/commit/{'a' * 40}"
        return self._answer(200, {"success": True, "commitOid": "a" * 40, "commitUrl": address})

    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: object, code: str = "") -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
