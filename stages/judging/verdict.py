"""A finished run, judged: every kept checkpoint scored, one chosen, the whole diagnosed.

Step 0's sample pictures and those of checkpoints are taken from the run where it drew them; only
what is missing, and the prompts without the trigger, are drawn here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image

from stages.adapters.files import read_adapter
from stages.encoding.encoded import Encoded
from stages.judging.diagnosis import Evidence, Finding, diagnose
from stages.judging.scoring import (
    Drawn,
    Image,
    Painter,
    Score,
    TrainingSet,
    put_adapter,
    score_pictures,
)
from stages.judging.selection import Choice, choose_checkpoint
from stages.judging.uses import uses_of_step
from stages.runtime.files import rounded
from stages.training.loop import Run, checkpoint_name, sample_name
from stages.training.state import Journal


@dataclass(frozen=True)
class Verdict:
    """What was found out about a run; scores and pictures have the base model first, as step 0."""

    scores: tuple[Score, ...]
    drawn: tuple[Drawn, ...]
    choice: Choice
    findings: tuple[Finding, ...]


def judge(run: Run, painter: Painter, journal: Journal, folder: Path) -> Verdict:
    """Return the verdict on a finished run; the model ends with another adapter than it had.

    Args:
        run: that has been trained.
        painter: draws with the run's own model.
        journal: of the whole run.
        folder: where its checkpoints and samples lie.
    """
    kept = [row.step for row in journal.history if checkpoint_name(row.step) in journal.files]
    drawn = [_draw(run, painter, journal, folder, step) for step in (0, *kept)]
    training = TrainingSet([picture.latents.mean for picture in run.data.training])
    scores = [score_pictures(each, drawn[0], training, painter.encode) for each in drawn]
    collapsed = {score.step for score in scores if score.collapsed}
    choice = choose_checkpoint(journal, set(kept), run.params.select, collapsed)
    uses = {
        row.step: uses_of_step(run.data, run.params, row.step)
        for row in journal.history
        if row.loss is not None
    }
    evidence = Evidence(journal.history, uses, scores, choice.step)
    return Verdict(tuple(scores), tuple(drawn), choice, tuple(diagnose(evidence)))


def score_table(journal: Journal, verdict: Verdict) -> pd.DataFrame:
    """Return the table SCORES."""
    rows = {row.step: row for row in journal.history}
    frame = pd.DataFrame(
        [
            {
                "step": score.step,
                "validation_loss": rows[score.step].validation_loss,
                "probe_loss": rows[score.step].probe_loss,
                **asdict(score),
                "chosen": score.step == verdict.choice.step,
            }
            for score in verdict.scores
        ]
    )
    kept = ("step", "collapsed", "chosen")
    return frame.astype({name: float for name in frame.columns if name not in kept})


def diagnosis_table(verdict: Verdict) -> pd.DataFrame:
    """Return the table DIAGNOSIS."""
    return pd.DataFrame(
        {
            "finding": finding.name,
            "words": finding.words,
            "advice": finding.advice,
            "numbers": json.dumps(
                {name: rounded(value) for name, value in finding.numbers.items()}, sort_keys=True
            ),
        }
        for finding in verdict.findings
    )


def _draw(run: Run, painter: Painter, journal: Journal, folder: Path, step: int) -> Drawn:
    put_adapter(run.transformer, read_adapter(folder / checkpoint_name(step)) if step else None)
    names = _sample_names(run.data, step)
    if all(name in journal.files for name in names):
        samples: Sequence[Image] = [_read(folder / name) for name in names]
    else:
        samples = list(painter.samples())
    return Drawn(step, samples, list(painter.plain()))


def _sample_names(data: Encoded, step: int) -> list[str]:
    return [sample_name(step, number) for number in range(len(data.samples))]


def _read(path: Path) -> Image:
    with PIL.Image.open(path) as file:
        return np.asarray(file.convert("RGB"), dtype=np.uint8)
