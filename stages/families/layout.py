"""What a diffusers pipeline folder of the FLUX family must hold, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from stages.contracts.errors import Problem, WeightsError
from stages.families.pickles import is_pickle, pickle_problem

INDEX: Final = "model_index.json"
READ_SUFFIXES: Final = (".json", ".model", ".safetensors", ".txt")
"""What loading a component reads; nothing else is downloaded or written to the manifest."""

_PIPELINE: Final = "FluxPipeline"
_TOKENIZER_FILES: Final = ("tokenizer.json", "vocab.json", "spiece.model")
_AGAIN: Final = "Download the base model again, without pickled files."
_HELP: Final = "docs/weights.md"


def read_components(folder: Path) -> dict[str, str]:
    """Return component folder -> class name, as model_index.json says.

    Raises:
        WeightsError: there is no folder, no model_index.json in it, or one of another family.
    """
    path = folder / INDEX
    if not folder.is_dir():
        problem = Problem(str(folder), "does not exist", "Set fetch.folder to the base weights.")
        raise WeightsError("There are no base weights", [problem])
    if not path.is_file():
        raise WeightsError("No base model found", _instead(folder))
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


def _instead(folder: Path) -> list[Problem]:
    """Return what is wrong with a folder that is no pipeline: perhaps it holds the weights so."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    remedy = "Set fetch.folder to a diffusers folder, or fetch.repository to one on the Hub."
    if single := [path.name for path in files if path.suffix == ".safetensors"]:
        remedy = f"Name single files ({', '.join(single)}) under fetch.single_files, see {_HELP}."
    missing = Problem(str(folder / INDEX), "missing", remedy)
    return [missing, *(pickle_problem(str(path)) for path in files if is_pickle(path.name))]


def check_component(folder: Path, kind: str) -> Iterator[Problem]:
    """Yield everything that is wrong with one component."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if is_pickle(path.name):
                yield pickle_problem(str(path))
        if "Tokenizer" not in kind and "Scheduler" not in kind:
            yield from _check_weights(folder)
    yield from check_settings(folder, kind)


def check_settings(folder: Path, kind: str) -> Iterator[Problem]:
    """Yield what a component lacks apart from weights: its config or its vocabulary."""
    if not folder.is_dir():
        yield Problem(str(folder), f"missing, {INDEX} names it", _AGAIN)
    elif "Tokenizer" in kind:
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            what = f"holds none of {', '.join(_TOKENIZER_FILES)}"
            yield Problem(str(folder), what, _AGAIN)
    else:
        settings = "scheduler_config.json" if "Scheduler" in kind else "config.json"
        if not (folder / settings).is_file():
            yield Problem(str(folder / settings), "missing", _AGAIN)


def _check_weights(folder: Path) -> Iterator[Problem]:
    """Yield missing and broken weight files of a model's folder."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    named = {name for path in indexes for name in _read_json(path)["weight_map"].values()}
    present = {path.name for path in folder.glob("*.safetensors")}
    if not named and not present:
        yield Problem(str(folder), "holds no .safetensors file", _AGAIN)
    for name in sorted(named - present):
        yield Problem(str(folder / name), f"missing, {indexes[0].name} names it", _AGAIN)
    for name in sorted(present):
        try:
            # Reads the header and compares it with the length of the file; no tensor is loaded.
            with safe_open(folder / name, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            yield Problem(str(folder / name), f"truncated or broken ({error})", _AGAIN)


def component_files(folder: Path, components: Iterable[str]) -> list[Path]:
    """Return the files that loading reads, sorted by path."""
    return sorted(
        path
        for name in components
        for path in (folder / name).iterdir()
        if path.suffix in READ_SUFFIXES and path.is_file()
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
