"""The base model's Linear weights, read one at a time: FLUX.1-dev's transformer is 24 GB.

Files are those diffusers would load from a pipeline folder: transformer/
diffusion_pytorch_model.safetensors, or the shards that its index names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from stages.adapters.compatibility import Shape
from stages.contracts.errors import Problem, WeightsError

_FILE: Final = "diffusion_pytorch_model.safetensors"
_INDEX: Final = "diffusion_pytorch_model.safetensors.index.json"
_WEIGHT: Final = ".weight"
_MATRIX_AXES: Final = 2
_REMEDY: Final = "Run `dvc repro --force fetch`, or check params fetch."


@dataclass(frozen=True, eq=False)
class LinearWeights:
    """The shape (out, in) of each Linear layer's weight, and the open file that it lies in."""

    shapes: Mapping[str, Shape]
    files: Mapping[str, Any]

    def read(self, module: str) -> torch.Tensor:
        """Return the weight [out, in] of one module in its stored dtype, on the CPU."""
        weight: torch.Tensor = self.files[module].get_tensor(module + _WEIGHT)
        return weight


@contextmanager
def open_linear_weights(folder: Path) -> Iterator[LinearWeights]:
    """Yield the Linear weights of a diffusers pipeline folder; only headers are read at once.

    Raises:
        WeightsError: a file is missing or no safetensors file; all of them are named.
    """
    shapes: dict[str, Shape] = {}
    files: dict[str, Any] = {}
    problems = []
    with ExitStack() as stack:
        for path in _weight_files(folder / "transformer"):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                problems.append(Problem(str(path), f"cannot be read ({error})", _REMEDY))
                continue
            found = _matrix_shapes(file)
            shapes |= found
            files |= dict.fromkeys(found, file)
        if problems:
            raise WeightsError("The base model cannot be read", problems)
        yield LinearWeights(shapes, files)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        return [folder / _FILE]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        problem = Problem(str(index), f"no index of weights ({error!r})", _REMEDY)
        raise WeightsError("The base model cannot be read", [problem]) from error
    return [folder / name for name in sorted(names)]


def _matrix_shapes(file: Any) -> dict[str, Shape]:
    """Return the shape of every matrix called `.weight`; in FLUX these are the Linear layers."""
    shapes = {}
    for name in file.keys():  # noqa: SIM118
        shape = file.get_slice(name).get_shape() if name.endswith(_WEIGHT) else []
        if len(shape) == _MATRIX_AXES:
            shapes[name.removesuffix(_WEIGHT)] = (shape[0], shape[1])
    return shapes
