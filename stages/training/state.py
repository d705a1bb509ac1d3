"""What a killed run goes on from: everything that a step depends on, in one checked file.

The folder of a run holds the newest two states as `state-<step>-<hash>.safetensors`, where the
hash is that of the file's content: a file that was cut or damaged does not match its own name.
Checkpoints and sample pictures that the run has made so far lie beside them until the run is
whole; a state names them with their hashes.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import torch

from stages.runtime.files import settle, sha256_file
from stages.runtime.tensors import write_safetensors

KEPT_STATES: Final = 2
_NAME: Final = re.compile(r"state-(\d{8})-([0-9a-f]{64})\.safetensors")
_FIELD: Final = "run"
_VALUES: Final = "values"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row of the history: step 0 is the base model; None is not measured.

    The losses at fixed points are those of `validation.Measures`, `validation_loss_ema` and
    `probe_loss_ema` two of them of the weights' moving average, where one is kept; the last two
    are those of `step.StepResult`.
    """

    step: int
    loss: float | None
    gradient_norm: float | None
    learning_rate: float
    validation_loss: float | None
    validation_loss_low: float | None = None
    validation_loss_middle: float | None = None
    validation_loss_high: float | None = None
    probe_loss: float | None = None
    validation_loss_ema: float | None = None
    probe_loss_ema: float | None = None
    regularisation_loss: float | None = None
    preservation_loss: float | None = None


@dataclass
class Journal:
    """What a run has done so far: steps, their history, its files with their SHA-256."""

    step: int
    history: list[Row]
    files: dict[str, str]


@dataclass(frozen=True)
class Contents:
    """What belongs to a run's last step: tensors by name, and other values in a JSON form."""

    tensors: Mapping[str, torch.Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """A journal and the contents of its last step."""

    journal: Journal
    contents: Contents


def save_state(folder: Path, journal: Journal, contents: Contents) -> None:
    """Write a state so that a kill at any moment leaves the earlier ones whole."""
    partial = folder / "state.partial"
    fields = {_FIELD: json.dumps(asdict(journal)), _VALUES: json.dumps(contents.values)}
    write_safetensors(partial, contents.tensors, fields)
    name = f"state-{journal.step:08d}-{sha256_file(partial)}.safetensors"
    settle(partial, folder / name)
    for _, path in _states(folder)[KEPT_STATES:]:
        path.unlink()


def load_newest(folder: Path) -> State | None:
    """Return the newest whole state in `folder`, or None if there is none.

    A damaged one, or one whose checkpoints or pictures are gone, is named in the log and removed,
    since the run will make it again.
    """
    for step, path in _states(folder):
        state = _load(folder, path)
        if state is not None:
            return state
        _log.warning("%s is damaged or incomplete; looking for one before step %d", path, step)
        path.unlink()
    return None


def clear_state(folder: Path) -> None:
    """Remove a finished run's state."""
    shutil.rmtree(folder, ignore_errors=True)


def _states(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the states in `folder`, newest first."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("state-*.safetensors")
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found, reverse=True)


def _load(folder: Path, path: Path) -> State | None:
    match = _NAME.fullmatch(path.name)
    if match is None or sha256_file(path) != match[2]:
        return None
    with safetensors.safe_open(path, framework="pt") as file:
        record, values = (json.loads(file.metadata()[field]) for field in (_FIELD, _VALUES))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    history = [Row(**row) for row in record["history"]]
    journal = Journal(record["step"], history, record["files"])
    whole = all(_matches(folder / name, digest) for name, digest in journal.files.items())
    return State(journal, Contents(tensors, values)) if whole else None


def _matches(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest
