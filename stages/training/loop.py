"""The training loop: step, measure, keep, and go on where it was killed.

What comes out is a function of the `Run` alone. When its state is saved depends on the clock, but
a run that is killed at any step and started again ends with the same bytes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from stages.adapters.attach import extract_adapter, lora_parameters
from stages.adapters.files import write_adapter
from stages.contracts.params import TrainParams
from stages.runtime.device import resident_bytes
from stages.runtime.files import sha256_file
from stages.runtime.progress import in_gigabytes, track
from stages.training.distribution import agreed, leader_first, world
from stages.training.encoded import Encoded
from stages.training.interruption import held_interruption
from stages.training.optimiser import build_optimiser, optimiser_tensors, restore_optimiser
from stages.training.state import Journal, Row, load_newest, save_state, write_whole
from stages.training.step import Trainee, take_step
from stages.training.validation import Measures, measure

_SAVE_EVERY: Final = "BLOCKLENS_SAVE_EVERY_S"
_SAVE_EVERY_S: Final = 30.0
_SAVING_SHARE: Final = 0.05  # of the time, where a state takes long to write
_OPTIMISER: Final = "optimiser."
_ADAPTER: Final = "adapter."
_log = logging.getLogger(__name__)

Pictures = Iterable[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Run:
    """All that decides a run.

    `transformer` carries the trainable adapter. `describe(step)` returns the text fields of a
    checkpoint; `draw_samples()` one picture [H, W, 3] in 0-255 per sample prompt, in order.
    """

    transformer: FluxTransformer2DModel
    data: Encoded
    params: TrainParams
    describe: Callable[[int], Mapping[str, str]]
    draw_samples: Callable[[], Pictures]


def checkpoint_name(step: int) -> str:
    """Return the file of the adapter after `step` steps, relative to the run's folder."""
    return f"checkpoints/step-{step:04d}.safetensors"


def sample_name(step: int, number: int) -> str:
    """Return the file of a sample prompt's picture, relative to the run's folder."""
    return f"samples/step-{step:04d}-{number}.png"


def train_adapter(run: Run, folder: Path) -> Journal:
    """Return the journal of the whole run, begun or continued; its files lie in `folder`.

    Of several processes (distribution.py) the first one's alone is whole, and it alone writes.

    Raises:
        TrainingError: a loss or gradient is not finite.
        KeyboardInterrupt: on Ctrl-C; like SystemExit on SIGTERM, after the state was saved.
    """
    parameters = lora_parameters(run.transformer)
    trainee = Trainee(run.transformer, parameters, build_optimiser(parameters, run.params))
    pace = _Pace()
    with held_interruption() as interruption:
        with leader_first():
            journal = _resume(trainee, folder)
        journal = journal or _begin(run, folder)
        steps = range(journal.step + 1, run.params.steps + 1)
        for step in track(steps, len(steps), "train", partial(_latest, journal)):
            _advance(run, trainee, journal, folder)
            interruption.number = agreed(interruption.number)
            if not world().leads:
                interruption.leave()
                continue
            if interruption.number is not None or step == run.params.steps or pace.due():
                started = time.monotonic()
                save_state(folder, journal, _tensors(trainee))
                pace.saved(started)
            interruption.leave()
    return journal


def _latest(journal: Journal) -> str:
    """Return what the last step says about the run: loss, learning rate, and memory in use."""
    memory = f"memory {in_gigabytes(resident_bytes())}"
    if not journal.history or journal.history[-1].loss is None:
        return memory
    row = journal.history[-1]
    return f"loss {row.loss:.4f}, rate {row.learning_rate:.3g}, {memory}"


class _Pace:
    """When to save: every half minute, or more seldom where it would cost much.

    BLOCKLENS_SAVE_EVERY_S sets another interval in seconds. It is environment, not a param: it
    decides how much a kill costs and no byte of the result.
    """

    def __init__(self) -> None:
        chosen = os.environ.get(_SAVE_EVERY)
        self._every_s = _SAVE_EVERY_S if chosen is None else float(chosen)
        self._share = _SAVING_SHARE if chosen is None else 1.0
        self._next = time.monotonic() + self._every_s

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def saved(self, started: float) -> None:
        now = time.monotonic()
        self._next = started + max(self._every_s, (now - started) / self._share)


def _begin(run: Run, folder: Path) -> Journal:
    """Return the journal of the base model: the adapter's B is zero, so it has no effect yet."""
    if not world().leads:
        return Journal(step=0, history=[], files={})
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(step=0, history=[], files={})
    base = _validate(run)
    _log.info("base model: validation loss %.4f", base.validation_loss)
    journal.history.append(Row(0, None, None, 0.0, **asdict(base)))
    _write_samples(run, journal, folder)
    return journal


def _resume(trainee: Trainee, folder: Path) -> Journal | None:
    """Put the newest whole state in `folder` on the trainee; None if there is none."""
    state = load_newest(folder)
    if state is None:
        return None
    with torch.no_grad():
        for name, parameter in trainee.parameters.items():
            parameter.copy_(state.tensors[f"{_ADAPTER}{name}"])
    entries = {
        name.removeprefix(_OPTIMISER): tensor
        for name, tensor in state.tensors.items()
        if name.startswith(_OPTIMISER)
    }
    restore_optimiser(trainee.optimiser, trainee.parameters, entries)
    _log.info("continuing after step %d from %s", state.journal.step, folder)
    return state.journal


def _tensors(trainee: Trainee) -> dict[str, torch.Tensor]:
    entries = optimiser_tensors(trainee.optimiser, trainee.parameters)
    return {
        **{f"{_ADAPTER}{name}": parameter for name, parameter in trainee.parameters.items()},
        **{f"{_OPTIMISER}{name}": tensor for name, tensor in entries.items()},
    }


def _advance(run: Run, trainee: Trainee, journal: Journal, folder: Path) -> None:
    """Take the next step, then measure, keep and draw what is due after it."""
    step, params = journal.step + 1, run.params
    result = take_step(trainee, run.data, params, step)
    if not world().leads:
        journal.step = step
        return
    last = step == params.steps
    measures = _validate(run) if last or step % params.validation_every == 0 else None
    losses = {"validation_loss": None} if measures is None else asdict(measures)
    journal.step = step
    losses |= {
        "regularisation_loss": result.regularisation_loss,
        "preservation_loss": result.preservation_loss,
    }
    journal.history.append(
        Row(step, result.loss, result.gradient_norm, result.learning_rate, **losses)
    )
    if measures is not None:
        _report(journal, params.validation_every)
    if last or step % params.checkpoint_every == 0:
        _write_checkpoint(run, journal, folder)
    if last or step % params.sample_every == 0:
        _write_samples(run, journal, folder)


def _validate(run: Run) -> Measures:
    """Return the losses at the fixed points, with the adapter as it is."""
    return measure(run.transformer, run.data, run.params)


def _report(journal: Journal, window: int) -> None:
    losses = [row.loss for row in journal.history[-window:] if row.loss is not None]
    base, row = journal.history[0].validation_loss, journal.history[-1]
    if base is None or row.validation_loss is None:
        return
    _log.info(
        "step %d: loss %.4f (mean of %d), validation loss %.4f, %.1f %% below the base model's",
        row.step,
        sum(losses) / len(losses),
        len(losses),
        row.validation_loss,
        100 * (1 - row.validation_loss / base),
    )


def _write_checkpoint(run: Run, journal: Journal, folder: Path) -> None:
    name = checkpoint_name(journal.step)
    adapter = extract_adapter(run.transformer, run.describe(journal.step))
    write_whole(folder / name, lambda path: write_adapter(path, adapter))
    journal.files[name] = sha256_file(folder / name)


def _write_samples(run: Run, journal: Journal, folder: Path) -> None:
    for index, picture in enumerate(run.draw_samples()):
        name = sample_name(journal.step, index)
        write_whole(folder / name, partial(Image.fromarray(picture).save, format="PNG"))
        journal.files[name] = sha256_file(folder / name)
