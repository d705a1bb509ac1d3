"""The training loop: step, measure, keep, and go on where it was killed.

What comes out is a function of the `Run` alone. When its state is saved depends on the clock, but
a run that is killed at any step and started again ends with the same bytes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from diffusers import FluxTransformer2DModel
from PIL import Image

from stages.adapters.attach import extract_adapter
from stages.adapters.files import write_adapter
from stages.contracts.params import ModelParams, TrainParams
from stages.encoding.encoded import Encoded
from stages.optimisation.optimiser import evaluation_weights
from stages.optimisation.phases import phase_of, phases_of
from stages.optimisation.schedule import total_steps
from stages.runtime.device import resident_bytes
from stages.runtime.files import sha256_file, write_whole
from stages.runtime.progress import in_gigabytes, track
from stages.training.distribution import agreed, leader_first, world
from stages.training.interruption import held_interruption
from stages.training.live import live_view
from stages.training.memory import LOADING, explained_memory
from stages.training.state import Journal, Row, load_newest, save_state
from stages.training.step import take_step
from stages.training.trainee import (
    Trainee,
    enter_phase,
    make_trainee,
    restore_trainee,
    trainee_contents,
)
from stages.training.validation import Measures, measure

_SAVE_EVERY: Final = "BLOCKLENS_SAVE_EVERY_S"
_SAVE_EVERY_S: Final = 30.0
_SAVING_SHARE: Final = 0.05  # of the time, where a state takes long to write
_AVERAGED: Final = {"blocklens.weights": "ema"}
_log = logging.getLogger(__name__)

Pictures = Iterable[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Run:
    """All that decides a run; its params are settled (see schedule.py).

    `transformer` carries the trainable adapter, at first that of the first phase. `describe(step)`
    returns the text fields of a checkpoint; `draw_samples()` one picture [H, W, 3] in 0-255 per
    sample prompt, in order.
    """

    transformer: FluxTransformer2DModel
    data: Encoded
    params: TrainParams
    model: ModelParams
    describe: Callable[[int], Mapping[str, str]]
    draw_samples: Callable[[], Pictures]


def checkpoint_name(step: int) -> str:
    """Return the file of the adapter after `step` steps, relative to the run's folder."""
    return f"checkpoints/step-{step:04d}.safetensors"


def average_name(step: int) -> str:
    """Return the file of the adapter's moving average after `step` steps, beside the checkpoint."""
    return f"checkpoints/step-{step:04d}-ema.safetensors"


def sample_name(step: int, number: int) -> str:
    """Return the file of a sample prompt's picture, relative to the run's folder."""
    return f"samples/step-{step:04d}-{number}.png"


def train_adapter(run: Run, folder: Path) -> Journal:
    """Return the journal of the whole run, begun or continued; its files lie in `folder`.

    Of several processes (distribution.py) the first one's alone is whole, and it alone writes.

    Raises:
        HardwareError: the optimiser cannot run on this machine.
        TrainingError: a loss or gradient is not finite, or memory ran out.
        KeyboardInterrupt: on Ctrl-C; like SystemExit on SIGTERM, after the state was saved.
    """
    with explained_memory(run.params, run.model, LOADING):
        trainee = make_trainee(run.transformer, run.params)
    pace, end = _Pace(), total_steps(run.params)
    with held_interruption() as interruption:
        with leader_first(), explained_memory(run.params, run.model, LOADING):
            trainee, journal = _resume(run, trainee, folder)
        journal = journal or _begin(run, folder)
        steps = range(journal.step + 1, end + 1)
        shown = live_view(folder, journal) if world().leads else nullcontext()
        with shown as live:
            for step in track(steps, len(steps), "train", partial(_latest, journal)):
                with explained_memory(run.params, run.model, f"step {step}"):
                    trainee = _in_phase(run, trainee, step)
                    _advance(run, trainee, journal, folder)
                interruption.number = agreed(interruption.number)
                if live is None:
                    interruption.leave()
                    continue
                live.step_taken(journal)
                if interruption.number is not None or step == end or pace.due():
                    started = time.monotonic()
                    live.before_saving(journal)
                    save_state(folder, journal, trainee_contents(trainee))
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
    with explained_memory(run.params, run.model, "step 0"):
        base = _validate(run, 0)
        _log.info("base model: validation loss %.4f", base.validation_loss)
        average = base if run.params.ema_decay > 0 else None
        journal.history.append(Row(0, None, None, 0.0, **_losses(base, average)))
        _write_samples(run, journal, folder)
    return journal


def _resume(run: Run, trainee: Trainee, folder: Path) -> tuple[Trainee, Journal | None]:
    """Return the trainee with the newest whole state in `folder`, in its phase; None if none is."""
    state = load_newest(folder)
    if state is None:
        return trainee, None
    for phase in phases_of(run.params)[1:]:
        if phase.first <= state.journal.step:
            trainee = enter_phase(trainee, phase)
    restore_trainee(trainee, state.contents)
    _log.info("continuing after step %d from %s", state.journal.step, folder)
    return trainee, state.journal


def _in_phase(run: Run, trainee: Trainee, step: int) -> Trainee:
    """Return the trainee for a step: a grown one where a phase begins with it."""
    phase = phase_of(step, run.params)
    if phase.number == 1 or step > phase.first:
        return trainee
    _log.info(
        "phase %d: rank %d, alpha %g, learning rate %g, until step %d",
        phase.number,
        phase.params.rank,
        phase.params.alpha,
        phase.params.learning_rate,
        phase.last,
    )
    return enter_phase(trainee, phase)


def _advance(run: Run, trainee: Trainee, journal: Journal, folder: Path) -> None:
    """Take the next step, then measure, keep and draw what is due after it."""
    step, params = journal.step + 1, run.params
    result = take_step(trainee, run.data, params, step)
    if not world().leads:
        journal.step = step
        return
    journal.step = step
    due = _due(step, params)
    measures = of_average = None
    if due:
        with evaluation_weights(trainee.optimiser, trainee.parameters):
            measures = _look(run, journal, folder, due, checkpoint_name(step), {})
            if "samples" in due:
                _write_samples(run, journal, folder)
    if due and trainee.average is not None:
        with trainee.average.applied():
            of_average = _look(run, journal, folder, due, average_name(step), _AVERAGED)
    losses = _losses(measures, of_average) | {
        "regularisation_loss": result.regularisation_loss,
        "preservation_loss": result.preservation_loss,
    }
    journal.history.append(
        Row(step, result.loss, result.gradient_norm, result.learning_rate, **losses)
    )
    if measures is not None:
        _report(journal, params.validation_every)


def _due(step: int, params: TrainParams) -> set[str]:
    """Return what is due after a step: validation, checkpoint, samples; all after a phase's end."""
    intervals = {
        "validation": params.validation_every,
        "checkpoint": params.checkpoint_every,
        "samples": params.sample_every,
    }
    last = step == phase_of(step, params).last
    return {what for what, every in intervals.items() if last or step % every == 0}


def _look(
    run: Run, journal: Journal, folder: Path, due: set[str], name: str, fields: Mapping[str, str]
) -> Measures | None:
    """Measure and keep, if due, the weights that are on the model; return what was measured.

    Args:
        run: whose model it is.
        journal: gets the checkpoint's hash.
        folder: of the run.
        due: see `_due`.
        name: of the checkpoint.
        fields: text fields of the checkpoint beside the run's.
    """
    measures = _validate(run, journal.step) if "validation" in due else None
    if "checkpoint" in due:
        adapter = extract_adapter(run.transformer, {**run.describe(journal.step), **fields})
        write_whole(folder / name, lambda path: write_adapter(path, adapter))
        journal.files[name] = sha256_file(folder / name)
    return measures


def _losses(measures: Measures | None, of_average: Measures | None) -> dict[str, float | None]:
    """Return a row's losses at fixed points; of the moving average those over all points."""
    losses: dict[str, float | None] = {"validation_loss": None}
    if measures is not None:
        losses = asdict(measures)
    if of_average is None:
        return losses
    averaged = {"validation_loss_ema": of_average.validation_loss}
    return {**losses, **averaged, "probe_loss_ema": of_average.probe_loss}


def _validate(run: Run, step: int) -> Measures:
    """Return the losses at the fixed points after `step`, with the adapter as it is."""
    return measure(run.transformer, run.data, run.params, step)


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
    if row.validation_loss_ema is not None:
        _log.info("of the weights' moving average: %.4f", row.validation_loss_ema)


def _write_samples(run: Run, journal: Journal, folder: Path) -> None:
    for index, picture in enumerate(run.draw_samples()):
        name = sample_name(journal.step, index)
        write_whole(folder / name, partial(Image.fromarray(picture).save, format="PNG"))
        journal.files[name] = sha256_file(folder / name)
