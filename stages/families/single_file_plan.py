"""Where each tensor of a base model lies in a single file, found before anything is written.

What the model needs is read from its own config: every expected tensor must be found, every key of
the file must be used, and every shape must fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from stages.contracts.errors import Problem, WeightsError
from stages.families.architecture import Architecture
from stages.families.pickles import is_pickle, pickle_problem
from stages.families.single_file_keys import (
    NEEDLESS,
    PREFIXES,
    SWAPPED,
    autoencoder_keys,
    text_encoder_keys,
    transformer_keys,
)
from stages.runtime.tensors import DTYPES, TensorForm

_EMBEDDING, _EMBEDDING_AGAIN = "shared.weight", "encoder.embed_tokens.weight"
_NAMED: Final = 5
"""Tensors that a message names before it says how many there are in all."""


@dataclass(frozen=True)
class Piece:
    """Where a tensor of ours lies: the key in the file, its ranges of rows in order, its form."""

    key: str
    rows: tuple[tuple[int, int], ...]
    form: TensorForm


Plan = Mapping[str, Piece]
"""Our name of each tensor -> where it lies."""


def plan_component(
    component: str, path: Path, folder: Path, architecture: Architecture
) -> tuple[Plan, list[Problem]]:
    """Return where each tensor of a component lies in its file, and all that is wrong with it.

    Raises:
        WeightsError: the component's config in `folder` is broken.
    """
    forms, problems = _read_forms(path)
    if problems:
        return {}, problems
    return match_tensors(component, path, forms, _expected(folder, component), architecture)


def _read_forms(path: Path) -> tuple[dict[str, TensorForm], list[Problem]]:
    """Return format and shape of every tensor in a file, or what is wrong with the file."""
    if not path.is_file():
        return {}, [Problem(str(path), "does not exist", "Check fetch.single_files.")]
    if is_pickle(path.name):
        return {}, [pickle_problem(str(path))]
    take = "Take the file with 16-bit weights (bf16 or fp16)."
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            forms = {
                key: TensorForm(part.get_dtype(), tuple(part.get_shape()))
                for key, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        with path.open("rb") as opened:
            start = opened.read(4)
        if start == b"GGUF":
            return {}, [Problem(str(path), "is GGUF, which holds quantised weights", take)]
        if start.startswith((b"PK", b"\x80")):
            return {}, [pickle_problem(str(path))]
        what = f"is no whole safetensors file ({error})"
        return {}, [Problem(str(path), what, "Download it again.")]
    if others := sorted({form.dtype for form in forms.values()} - set(DTYPES)):
        what = f"holds quantised or other weights ({', '.join(others)})"
        return {}, [Problem(str(path), what, take)]
    return forms, []


def _expected(folder: Path, component: str) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that the component's config asks for.

    Raises:
        WeightsError: the config is not one.
    """
    model: Any
    try:
        with torch.device("meta"):
            if component == "transformer":
                config = FluxTransformer2DModel.load_config(folder / component)
                model = FluxTransformer2DModel.from_config(config)
            elif component == "vae":
                model = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / component))
            elif component == "text_encoder":
                model = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / component))
            else:
                model = T5EncoderModel(T5Config.from_pretrained(folder / component))
    except (OSError, ValueError, TypeError) as error:
        where = str(folder / component / "config.json")
        problem = Problem(where, f"cannot be read ({error})", "Download the configs again.")
        raise WeightsError("A config of the base model is broken", [problem]) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes.pop(_EMBEDDING_AGAIN, None)
    return shapes


def match_tensors(
    component: str,
    path: Path,
    forms: Mapping[str, TensorForm],
    expected: Mapping[str, tuple[int, ...]],
    architecture: Architecture,
) -> tuple[Plan, list[Problem]]:
    """Return where each expected tensor lies in the file, and what does not fit."""
    named = _named(component, forms)
    is_ours = set(named) == set(expected)
    keys = (
        text_encoder_keys(expected) if is_ours else _keys(component, sorted(expected), architecture)
    )
    problems = _unequal_twins(path, named, forms)
    problems += _counted(path, "lacks", set(keys) - set(named))
    problems += _counted(path, "has no place for", set(named) - set(keys))
    plan: dict[str, Piece] = {}
    misfits = []
    for key in sorted(set(keys) & set(named)):
        found, parts = forms[named[key]], keys[key]
        lengths = [expected[part][0] for part in parts]
        wanted = (sum(lengths), *expected[parts[0]][1:])
        if _plain(found.shape) != _plain(wanted):
            misfits.append(f"{key} ({list(found.shape)}, expected {list(wanted)})")
            continue
        start = 0
        for part, length in zip(parts, lengths, strict=True):
            rows: tuple[tuple[int, int], ...] = ((start, start + length),)
            if SWAPPED.fullmatch(part) and component == "transformer" and not is_ours:
                rows = ((length // 2, length), (0, length // 2))
            plan[part] = Piece(named[key], rows, TensorForm(found.dtype, expected[part]))
            start += length
    problems += _counted(path, "does not fit the config in", misfits)
    return plan, problems


def _keys(
    component: str, ours: list[str], architecture: Architecture
) -> dict[str, tuple[str, ...]]:
    if component == "transformer":
        return transformer_keys(architecture)
    if component == "vae":
        return autoencoder_keys(ours)
    return text_encoder_keys(ours)


def _named(component: str, forms: Mapping[str, TensorForm]) -> dict[str, str]:
    """Return the keys without what is put before them -> the keys, less the needless ones."""
    named: dict[str, str] = {}
    for key in forms:
        prefix = next((p for p in PREFIXES[component] if key.startswith(p)), "")
        named[key.removeprefix(prefix)] = key
    if not component.startswith("text_encoder"):
        return named
    if component == "text_encoder_2" and _EMBEDDING_AGAIN in named:
        named.setdefault(_EMBEDDING, named[_EMBEDDING_AGAIN])
    return {name: key for name, key in named.items() if not NEEDLESS.fullmatch(name)}


def _unequal_twins(
    path: Path, named: Mapping[str, str], forms: Mapping[str, TensorForm]
) -> list[Problem]:
    """Return a problem if T5's embedding is there twice and is not the same."""
    key = named.get(_EMBEDDING)
    if key is None or key == _EMBEDDING_AGAIN or _EMBEDDING_AGAIN not in forms:
        return []
    with safe_open(path, framework="pt") as file:
        if torch.equal(file.get_tensor(key), file.get_tensor(_EMBEDDING_AGAIN)):
            return []
    what = f"holds two different embeddings, {key} and {_EMBEDDING_AGAIN}"
    return [Problem(str(path), what, "Take another T5 encoder: FLUX's has one.")]


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without ones at its end: a 1x1 convolution is a Linear layer."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _counted(path: Path, what: str, names: set[str] | list[str]) -> list[Problem]:
    """Return one problem for all of `names`, or none."""
    if not names:
        return []
    shown = ", ".join(sorted(names)[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    remedy = "Take the file that belongs to the configs in fetch.folder."
    return [Problem(str(path), f"{what} {len(names)} tensors: {shown}{more}", remedy)]
