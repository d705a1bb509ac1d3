"""A base model from single files, as ComfyUI keeps it: converted once into a diffusers folder.

Everything after `fetch` then goes the way of any other base model. Tensors are copied one at a
time and bit for bit, in the format that they are stored in.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open

from stages.contracts.errors import Problem, WeightsError
from stages.contracts.params import SingleFilesParams
from stages.families.architecture import read_architecture
from stages.families.hub import SPARE_BYTES
from stages.families.layout import INDEX, READ_SUFFIXES, check_settings, read_components
from stages.families.single_file_plan import Plan, plan_component
from stages.runtime.files import sha256_file, sha256_text, write_json
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import in_gigabytes, track
from stages.runtime.tensors import stream_safetensors

_CONVERSION: Final = 1
"""Counts changes of what conversion writes, so that no older copy is taken for a new one."""

_ROLES: Final = {
    "transformer": "transformer",
    "autoencoder": "vae",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
}
"""Key in `fetch.single_files` -> component."""

_OUTPUTS: Final = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
_log = logging.getLogger(__name__)


def convert_single_files(files: SingleFilesParams, folder: Path) -> Path:
    """Return the diffusers folder made of the files; it is made once per content.

    Args:
        files: one .safetensors file for each part, in FLUX's original key names or in ours.
        folder: a diffusers folder with the configs and tokenizers; weights in it are not used.

    Raises:
        WeightsError: files are missing, pickled, quantised or broken, or do not fit the configs;
            all are named. Or the disk has no room for the copy.
    """
    components = read_components(folder)
    paths = {component: Path(getattr(files, role)) for role, component in _ROLES.items()}
    problems = [
        problem
        for name, kind in components.items()
        for problem in check_settings(folder / name, kind)
    ]
    if absent := sorted(set(paths) - set(components)):
        what = f"does not name {', '.join(absent)}"
        problems.append(Problem(str(folder / INDEX), what, "Take the configs of a FLUX model."))
    if problems:
        raise WeightsError(f"The configs in {folder} cannot be used", problems)
    plans = _plans(paths, folder)
    settings = _settings(folder, components)
    sources = {
        component: {"name": path.name, "sha256": sha256_file(path)}
        for component, path in track(paths.items(), len(paths), "fetch: hashes of single files")
    }
    identity = [f"{component} {source['sha256']}" for component, source in sources.items()]
    identity += [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}" for path in settings]
    name = sha256_text("\n".join([f"conversion {_CONVERSION}", *sorted(identity)]))[:16]
    target = Path(files.converted) / name
    if target.is_dir():
        _log.info("fetch: %s was converted before", target)
        return target
    _require_space(target, plans)
    with replace_folder(target) as work:
        for path in settings:
            copy = work / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        for component, plan in plans.items():
            _write(paths[component], plan, work / component / _OUTPUTS[component])
        write_json(work / "single_files.json", sources)
    return target


def _settings(folder: Path, components: Mapping[str, str]) -> list[Path]:
    """Return configs and tokenizers of the components, sorted."""
    found = [
        path
        for name in components
        for path in (folder / name).iterdir()
        if path.suffix in READ_SUFFIXES and ".safetensors" not in path.name and path.is_file()
    ]
    return [folder / INDEX, *sorted(found)]


def _plans(paths: Mapping[str, Path], folder: Path) -> dict[str, Plan]:
    """Return where everything lies that the model needs.

    Raises:
        WeightsError: something is missing, left over or of another shape; all is named.
    """
    architecture = read_architecture(folder)
    plans: dict[str, Plan] = {}
    problems: list[Problem] = []
    for component, path in paths.items():
        plans[component], wrong = plan_component(component, path, folder, architecture)
        problems += wrong
    if problems:
        raise WeightsError("The single files cannot be used", problems)
    return plans


def _require_space(target: Path, plans: Mapping[str, Plan]) -> None:
    sizes = [piece.form.size_bytes for plan in plans.values() for piece in plan.values()]
    needed = sum(sizes) + SPARE_BYTES
    place = target.absolute()
    free = shutil.disk_usage(next(part for part in place.parents if part.exists())).free
    if needed > free:
        what = f"needs {in_gigabytes(needed)}, {in_gigabytes(free)} are free"
        remedy = "Free space, or set fetch.single_files.converted to a folder on another disk."
        raise WeightsError("No room for the copy", [Problem(str(target.parent), what, remedy)])


def _write(path: Path, plan: Plan, out: Path) -> None:
    """Write a component's tensors, one in memory at a time."""
    with safe_open(path, framework="pt") as file:

        def read(name: str) -> torch.Tensor:
            piece = plan[name]
            stored = file.get_slice(piece.key)
            rows = [stored[start:end] for start, end in piece.rows]
            whole: torch.Tensor = rows[0] if len(rows) == 1 else torch.cat(rows)
            return whole.reshape(piece.form.shape)

        forms = {name: piece.form for name, piece in plan.items()}
        stream_safetensors(out, forms, read, {"format": "pt"})
