"""Base weights: found or downloaded, checked, and written down to the byte.

Reads:  the folder, single files or Hub repository that the params name.
Writes: manifest.json (path, size and SHA-256 of every file). The weights stay where they are;
        single files are converted once, into the folder that the params name for it.
Params: fetch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.contracts.errors import Problem, WeightsError
from stages.contracts.params import FetchParams
from stages.families.architecture import read_architecture
from stages.families.hub import download, download_checked
from stages.families.hub_revision import explain_revisions
from stages.families.layout import (
    INDEX,
    READ_SUFFIXES,
    check_component,
    component_files,
    read_components,
)
from stages.families.pickles import hub_pickle_problems
from stages.families.weights import Manifest, WeightFile, write_manifest
from stages.runtime.console import run_stage
from stages.runtime.files import sha256_file
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track

_OTHER_PRECISIONS: Final = ("*.fp16.*", "*.bf16.*")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """A diffusers folder, its components (folder -> class name), and hashes that are known."""

    folder: Path
    components: Mapping[str, str]
    sha256: Mapping[str, str]


def fetch(params: FetchParams, *, out: Path) -> None:
    """Check the base weights, downloading them if they are on the Hub, and write the manifest.

    Raises:
        WeightsError: files are missing, broken, pickled or not to be had; all are named.
    """
    found = _located(params)
    folder = found.folder
    problems = [
        problem
        for name, kind in found.components.items()
        for problem in check_component(folder / name, kind)
    ]
    if problems:
        problems += _hub_pickles(params)
        raise WeightsError(f"The base weights in {folder} cannot be used", problems)
    architecture = read_architecture(folder)
    _log.info(
        "fetch: %d double and %d single blocks",
        architecture.double_blocks,
        architecture.single_blocks,
    )
    local = None if params.repository else folder.as_posix()
    manifest = Manifest(local, params.repository, params.revision, _files(found))
    with replace_folder(out) as work:
        write_manifest(work / "manifest.json", manifest)


def _files(found: _Found) -> tuple[WeightFile, ...]:
    """Return the manifest's files; one that was hashed when it arrived is not read again."""
    paths = [found.folder / INDEX, *component_files(found.folder, found.components)]
    names = [path.relative_to(found.folder).as_posix() for path in paths]
    return tuple(
        WeightFile(name, path.stat().st_size, found.sha256.get(name) or sha256_file(path))
        for name, path in track(list(zip(names, paths, strict=True)), len(paths), "fetch")
    )


def _located(params: FetchParams) -> _Found:
    """Return the folder with everything that there is to have."""
    if params.repository is None or params.revision is None:
        folder = Path(params.folder)
        if params.single_files is not None:
            # Here, because it brings torch and diffusers along, which take seconds to import.
            from stages.families.single_files import convert_single_files

            folder = convert_single_files(params.single_files, folder)
        return _Found(folder, read_components(folder), {})
    _log.info("fetch: %s at %s", params.repository, params.revision)
    # The index first: it says which folders the family needs of a repository that also holds
    # the same weights in other shapes (FLUX.1-dev: 24 GB more in its root).
    try:
        folder = download(params.repository, params.revision, [INDEX])
    except WeightsError as error:
        if any(problem.where.endswith(INDEX) for problem in error.problems):
            problems = [*error.problems, *_hub_pickles(params)]
            raise WeightsError(error.summary, problems) from None
        raise
    components = read_components(folder)
    patterns = [f"{name}/*{suffix}" for name in components for suffix in READ_SUFFIXES]
    snapshot = download_checked(
        params.repository, params.revision, [INDEX, *patterns], _OTHER_PRECISIONS
    )
    return _Found(snapshot.folder, components, snapshot.sha256)


def _hub_pickles(params: FetchParams) -> list[Problem]:
    """Return the pickles of a repository: they may be what is there instead of weights."""
    if params.repository is None or params.revision is None:
        return []
    return hub_pickle_problems(params.repository, params.revision)


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(fetch, sections=("fetch",), paths=("out",), explain=explain_revisions)


if __name__ == "__main__":
    main()
