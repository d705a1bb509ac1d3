"""A finished run, judged: every kept checkpoint scored, one chosen, the whole diagnosed.

Step 0's sample pictures and those of checkpoints are taken from the run where it drew them; only
what is missing, and the prompts without the trigger, are drawn here, and kept: a kill while it is
judged costs the pictures of one checkpoint at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.adapters.files import read_adapter
from stages.judging.candidates import BASE_MODEL, Candidate, kept_candidates
from stages.judging.diagnosis import diagnose
from stages.judging.drawings import kept_or_drawn, read_picture
from stages.judging.findings import Evidence, Finding
from stages.judging.scoring import (
    Drawn,
    Painter,
    Score,
    TrainingSet,
    put_adapter,
    score_pictures,
)
from stages.judging.selection import Choice, choose_checkpoint
from stages.judging.uses import uses_of_step
from stages.optimisation.phases import phases_of
from stages.training.loop import Run, sample_name
from stages.training.state import Journal


@dataclass(frozen=True)
class Verdict:
    """What was found out about a run; scores and pictures have the base model first."""

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
    kept = kept_candidates(journal)
    drawn = [_draw(run, painter, journal, folder, each) for each in (BASE_MODEL, *kept)]
    training = TrainingSet([picture.latents.mean for picture in run.data.training])
    scores = [score_pictures(each, drawn[0], training, painter.encode) for each in drawn]
    collapsed = {score.candidate for score in scores if score.collapsed}
    choice = choose_checkpoint(journal, kept, run.params.select, collapsed)
    uses = {
        row.step: uses_of_step(run.data, run.params, row.step)
        for row in journal.history
        if row.loss is not None
    }
    begins = phases_of(run.params)[-1].first - 1
    evidence = Evidence(journal.history, uses, scores, choice.candidate, begins)
    return Verdict(tuple(scores), tuple(drawn), choice, tuple(diagnose(evidence)))


def _draw(
    run: Run, painter: Painter, journal: Journal, folder: Path, candidate: Candidate
) -> Drawn:
    adapter = None if candidate == BASE_MODEL else read_adapter(folder / candidate.file)
    put_adapter(run.transformer, adapter)
    name = "base" if candidate == BASE_MODEL else Path(candidate.file).stem
    drawn = [sample_name(candidate.step, number) for number in range(len(run.data.samples))]
    if candidate.weights == "raw" and all(each in journal.files for each in drawn):
        samples = [read_picture(folder / each) for each in drawn]
    else:
        samples = kept_or_drawn(folder, f"{name}-samples", len(drawn), painter.samples)
    plain = kept_or_drawn(folder, f"{name}-plain", len(run.data.plain), painter.plain)
    return Drawn(candidate, samples, plain)
