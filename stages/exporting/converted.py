"""The diffusers folder that stage fetch made of single files, for programs that read no others."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Final

from stages.contracts.errors import Problem, WeightsError
from stages.contracts.params import FetchParams
from stages.families.weights import read_manifest

_SOURCES: Final = "single_files.json"
"""In that folder: name and SHA-256 of each file that it was made of (families/single_files.py)."""


def converted_folder(fetch: FetchParams, manifest: Path) -> Path | None:
    """Return the folder that was made of `fetch.single_files`, None if there is none.

    The manifest may be of other params: it counts if its folder lies in `single_files.converted`
    and was made of files with these names.

    Raises:
        WeightsError: the manifest, or what the folder says of itself, is broken.
    """
    files = fetch.single_files
    if files is None or not manifest.is_file():
        return None
    folder = Path(read_manifest(manifest).folder or "")
    sources = folder / _SOURCES
    if folder.parent != Path(files.converted) or not sources.is_file():
        return None
    paths = (files.transformer, files.autoencoder, files.text_encoder, files.text_encoder_2)
    own = sorted(PurePath(path).name for path in paths)
    return folder if _names(sources) == own else None


def _names(sources: Path) -> list[str]:
    try:
        content = json.loads(sources.read_text(encoding="utf-8"))
        return sorted(source["name"] for source in content.values())
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        remedy = "Remove the folder and run `dvc repro --force fetch`."
        problem = Problem(str(sources), f"cannot be read ({error})", remedy)
        raise WeightsError("The converted base model is broken", [problem]) from error
