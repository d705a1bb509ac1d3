"""Files whose bytes depend on their content alone, whole or not there. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_READ_BYTES = 1 << 20


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as UTF-8 JSON with sorted keys, floats as short as they round-trip."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file, and put it at `path` only when it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    settle(partial, path)


def settle(partial: Path, path: Path) -> None:
    """Move a written file to its place once it is on the disk, and make the move last."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rounded(value: float, digits: int = 6) -> float:
    """Return `value` with `digits` significant digits, for metrics that people compare."""
    return float(f"{value:.{digits}g}")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def git_blob_hash(path: Path) -> str:
    """Return the SHA-1 by which git names a file's content, in hexadecimal.

    It is taken over the word "blob", the length and the content (Pro Git, 10.2 Git Objects).
    """
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
