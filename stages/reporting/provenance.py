"""Where everything comes from: files with their hashes, versions, params, commands."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from stages.contracts.params import Params
from stages.reporting.evidence import Evidence

PACKAGES: Final = (
    "accelerate",
    "diffusers",
    "dvc",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "peft",
    "pillow",
    "safetensors",
    "torch",
    "transformers",
)
"""Packages whose version can change pictures or weights."""

_OF_THE_MAKING: Final = ("prepare", "encode", "train")
"""Sections that say nothing of a LoRA that was not trained here; `caption` has its trigger."""

_METADATA_SHOWN: Final = 400  # characters; tag frequencies of large sets run to pages


@dataclass(frozen=True)
class HashedFile:
    """A file, as a person would name it, with its SHA-256.

    One that is not below the project is not found from its `path`, which is shortened.
    """

    name: str
    path: str
    sha256: str
    is_inside: bool


@dataclass(frozen=True)
class Setting:
    """One value of params.yaml with the sentence that explains it."""

    key: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Provenance:
    """What is needed to make the same files again, and to see that they are the same."""

    base: str
    files: Sequence[HashedFile]
    versions: Sequence[tuple[str, str]]
    settings: Mapping[str, Sequence[Setting]]
    metadata: Sequence[tuple[str, str]]
    weights: Sequence[tuple[str, str]]


def trace_provenance(evidence: Evidence, params: Params) -> Provenance:
    """Return the origins; paths are shown as dvc.yaml writes them, never absolute."""
    folders, weights = evidence.folders, evidence.weights
    revision = f" at revision {weights['revision']}" if weights.get("revision") else ""
    files = {
        "The LoRA": folders.adapter,
        "The slim LoRA": folders.slimmed / "adapter-slim.safetensors",
        "Manifest of the base weights": folders.manifest,
        "Manifest of the pictures": folders.prepared / "manifest.csv",
        "Captions": folders.captioned / "captions.csv",
    }
    return Provenance(
        base=f"{weights.get('repository') or weights.get('folder')}{revision}",
        files=[
            HashedFile(name, _shown_path(path), _sha256(path), _inside(path) is not None)
            for name, path in files.items()
            if path.is_file()
        ],
        versions=[("python", _python()), *_versions()],
        settings=_settings(params, () if evidence.making else _OF_THE_MAKING),
        metadata=_metadata(folders.adapter),
        weights=[(file["path"], file["sha256"]) for file in weights["files"]],
    )


def _shown_path(path: Path) -> str:
    """Return the path from the project's folder, which is the working one.

    Elsewhere, an absolute path's last three parts at most: the rest is of no use to others.
    """
    if (inside := _inside(path)) is not None:
        return inside.as_posix()
    return Path(*path.parts[-3:]).as_posix() if path.is_absolute() else path.as_posix()


def _inside(path: Path) -> Path | None:
    """Return the path from the project's folder, None if it leads out of it; links are taken."""
    project = Path.cwd()
    whole = Path(os.path.normpath(project / path))
    return whole.relative_to(project) if whole.is_relative_to(project) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _python() -> str:
    """Return the minor version: a patch of Python (3.11.2, 3.11.7) changes no byte of a run."""
    return ".".join(platform.python_version_tuple()[:2])


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            found.append((package, "not installed"))
    return found


def _settings(params: Params, without: Sequence[str]) -> dict[str, list[Setting]]:
    sections: dict[str, list[Setting]] = {}
    for name in type(params).model_fields:
        if name in without:
            continue
        section: Any = getattr(params, name)
        fields = type(section).model_fields
        sections[name] = [
            Setting(key, _written(value), fields[key].description or "")
            for key, value in section.model_dump().items()
        ]
    return sections


def _written(value: object) -> str:
    """Return a value as YAML readers know it: JSON, but plain text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _metadata(adapter: Path) -> list[tuple[str, str]]:
    with safe_open(adapter, framework="numpy") as file:
        fields: dict[str, str] = file.metadata() or {}
    return [
        (key, text if len(text) <= _METADATA_SHOWN else f"{text[:_METADATA_SHOWN]}…")
        for key, text in sorted(fields.items())
    ]
