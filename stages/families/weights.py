"""The base weights of a run: a manifest in git, the files wherever they are.

`fetch` writes the manifest; every later stage asks `ensure_weights` for the folder. The weights
are never copied into the DVC cache: FLUX.1-dev is 34 GB.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from stages.contracts.errors import Problem, WeightsError
from stages.families.hub import download
from stages.runtime.files import sha256_file, write_json

HASHED_AGAIN_BYTES: Final = 64 << 20
"""Files up to this size are hashed at every use, larger ones are compared by size alone."""


@dataclass(frozen=True)
class WeightFile:
    """One file of the base model: POSIX path below the folder, size and SHA-256."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Where the base weights come from, and what they are to the byte.

    `folder` is a local folder, or None for a Hub repository at a pinned revision.
    """

    folder: str | None
    repository: str | None
    revision: str | None
    files: tuple[WeightFile, ...]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest as JSON, files sorted by path."""
    content = asdict(manifest)
    content["files"] = sorted(content["files"], key=lambda file: str(file["path"]))
    write_json(path, content)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest that `fetch` wrote.

    Raises:
        WeightsError: the file is missing or is not a manifest.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(WeightFile(**file) for file in content.pop("files"))
        return Manifest(files=files, **content)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing; run `dvc repro fetch`") from error
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path} is not a manifest; run `dvc repro --force fetch`") from error


def ensure_weights(manifest_path: Path) -> Path:
    """Return the diffusers folder of the base model, downloading what is missing of a pinned one.

    Raises:
        WeightsError: files are missing or differ from the manifest; all of them are named.
    """
    manifest = read_manifest(manifest_path)
    folder = _local_folder(manifest)
    problems = [problem for file in manifest.files if (problem := _check(folder, file))]
    if problems:
        raise WeightsError(f"Base weights in {folder} differ from {manifest_path}", problems)
    return folder


def _local_folder(manifest: Manifest) -> Path:
    if manifest.repository is None:
        return Path(manifest.folder or ".")
    return download(
        manifest.repository, manifest.revision or "", [file.path for file in manifest.files]
    )


def _check(folder: Path, file: WeightFile) -> Problem | None:
    path = folder / file.path
    remedy = "Put it back, or run `dvc repro --force fetch` if the change is meant."
    if not path.is_file():
        return Problem(str(path), "missing", remedy)
    size = path.stat().st_size
    if size != file.size_bytes:
        return Problem(str(path), f"{size} bytes, expected {file.size_bytes}", remedy)
    if size <= HASHED_AGAIN_BYTES and sha256_file(path) != file.sha256:
        return Problem(str(path), "content changed since fetch (SHA-256 differs)", remedy)
    return None
