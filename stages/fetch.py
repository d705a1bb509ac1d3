"""Base weights: found or downloaded, checked, and written down to the byte.

Reads:  the folder or the Hub repository that the params name.
Writes: manifest.json (path, size and SHA-256 of every file). The weights stay where they are.
Params: fetch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from stages.contracts.errors import Problem, WeightsError
from stages.contracts.params import FetchParams
from stages.families.architecture import read_architecture
from stages.families.hub import download
from stages.families.weights import Manifest, WeightFile, write_manifest
from stages.runtime.console import run_stage
from stages.runtime.files import sha256_file
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track

_INDEX: Final = "model_index.json"
_PIPELINE: Final = "FluxPipeline"
_READ_SUFFIXES: Final = (".json", ".model", ".safetensors", ".txt")
_PICKLE_SUFFIXES: Final = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
_OTHER_PRECISIONS: Final = ("*.fp16.*", "*.bf16.*")
_TOKENIZER_FILES: Final = ("tokenizer.json", "vocab.json", "spiece.model")

_log = logging.getLogger(__name__)


def fetch(params: FetchParams, *, out: Path) -> None:
    """Check the base weights, downloading them if they are on the Hub, and write the manifest.

    Raises:
        WeightsError: files are missing, broken, pickled or not to be had; all are named.
    """
    folder, components = _located(params)
    problems = [
        problem for name, kind in components.items() for problem in _check(folder / name, kind)
    ]
    if problems:
        raise WeightsError(f"The base weights in {folder} cannot be used", problems)
    architecture = read_architecture(folder)
    _log.info(
        "fetch: %d double and %d single blocks",
        architecture.double_blocks,
        architecture.single_blocks,
    )
    paths = [folder / _INDEX, *_component_files(folder, components)]
    files = tuple(
        WeightFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
        for path in track(paths, len(paths), "fetch")
    )
    local = params.folder if params.repository is None else None
    with replace_folder(out) as work:
        manifest = Manifest(local, params.repository, params.revision, files)
        write_manifest(work / "manifest.json", manifest)


def _located(params: FetchParams) -> tuple[Path, dict[str, str]]:
    """Return the folder with everything that there is to have, and its components."""
    if params.repository is None or params.revision is None:
        folder = Path(params.folder)
        return folder, _components(folder)
    _log.info("fetch: %s at %s", params.repository, params.revision)
    # The index first: it says which folders the family needs of a repository that also holds
    # the same weights in other shapes (FLUX.1-dev: 24 GB more in its root).
    folder = download(params.repository, params.revision, [_INDEX])
    components = _components(folder)
    patterns = [f"{name}/*{suffix}" for name in components for suffix in _READ_SUFFIXES]
    download(params.repository, params.revision, [_INDEX, *patterns], _OTHER_PRECISIONS)
    return folder, components


def _components(folder: Path) -> dict[str, str]:
    """Return component folder -> class name, as model_index.json says."""
    path = folder / _INDEX
    if not folder.is_dir():
        problem = Problem(str(folder), "does not exist", "Set fetch.folder to the base weights.")
        raise WeightsError("There are no base weights", [problem])
    if not path.is_file():
        remedy = "Set fetch.folder to a diffusers folder, or fetch.repository to one on the Hub."
        raise WeightsError("No base model found", [Problem(str(path), "missing", remedy)])
    index = _read_json(path)
    pipeline = str(index.get("_class_name"))
    if pipeline != _PIPELINE:
        remedy = f"Choose a base model that diffusers loads as {_PIPELINE}."
        problem = Problem(str(path), f"is for {pipeline}, not for {_PIPELINE}", remedy)
        raise WeightsError("This base model is of another family", [problem])
    return {
        name: str(entry[1])
        for name, entry in sorted(index.items())
        if isinstance(entry, list) and entry[1] is not None
    }


def _check(folder: Path, kind: str) -> Iterator[Problem]:
    """Yield everything that is wrong with one component."""
    again = "Download the base model again, without pickled files."
    if not folder.is_dir():
        yield Problem(str(folder), f"missing, {_INDEX} names it", again)
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLE_SUFFIXES:
            what = "pickled weights, which can run any program when they are read"
            yield Problem(
                str(path), what, "Move it away, and put a .safetensors file in its place."
            )
    if "Tokenizer" in kind:
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            what = f"holds none of {', '.join(_TOKENIZER_FILES)}"
            yield Problem(str(folder), what, again)
        return
    settings = "scheduler_config.json" if "Scheduler" in kind else "config.json"
    if not (folder / settings).is_file():
        yield Problem(str(folder / settings), "missing", again)
    if "Scheduler" not in kind:
        yield from _check_weights(folder, again)


def _check_weights(folder: Path, again: str) -> Iterator[Problem]:
    """Yield missing and broken weight files of a model's folder."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    named = {name for path in indexes for name in _read_json(path)["weight_map"].values()}
    present = {path.name for path in folder.glob("*.safetensors")}
    if not named and not present:
        yield Problem(str(folder), "holds no .safetensors file", again)
    for name in sorted(named - present):
        yield Problem(str(folder / name), f"missing, {indexes[0].name} names it", again)
    for name in sorted(present):
        try:
            # Reads the header and compares it with the length of the file; no tensor is loaded.
            with safe_open(folder / name, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            yield Problem(str(folder / name), f"truncated or broken ({error})", again)


def _component_files(folder: Path, components: Iterable[str]) -> list[Path]:
    return sorted(
        path
        for name in components
        for path in (folder / name).iterdir()
        if path.suffix in _READ_SUFFIXES and path.is_file()
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        problem = Problem(str(path), f"is not JSON ({error})", "Download the base model again.")
        raise WeightsError("A file of the base weights is broken", [problem]) from error
    if not isinstance(content, dict):
        problem = Problem(str(path), "is not a JSON object", "Download the base model again.")
        raise WeightsError("A file of the base weights is broken", [problem])
    return content


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(fetch, sections=("fetch",), paths=("out",))


if __name__ == "__main__":
    main()
