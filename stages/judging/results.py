"""What a finished run leaves behind: its files, tables, sheet, chosen adapter and metrics."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pandas as pd
from PIL import Image

from stages.contracts.tables import DIAGNOSIS, HISTORY, SCORES, write_table
from stages.imaging.checkpoint_sheet import CheckpointRow, checkpoint_sheet
from stages.judging.scoring import score_notes
from stages.judging.verdict import Verdict
from stages.runtime.files import rounded, write_json
from stages.training.history import history_table
from stages.training.loop import Run
from stages.training.state import Journal
from stages.training.trainee import count_parameters

_LAST_STEPS: Final = 50
_log = logging.getLogger(__name__)


def write_results(work: Path, run: Run, journal: Journal, verdict: Verdict, state: Path) -> None:
    """Write all that stage `train` gives, into the empty folder `work`.

    Args:
        work: the folder.
        run: that is finished.
        journal: of the whole run; its files lie in `state`.
        verdict: on it.
        state: the run's folder.
    """
    for name in ("checkpoints", "samples"):
        (work / name).mkdir()
    for name in journal.files:
        shutil.copyfile(state / name, work / name)
    shutil.copyfile(work / verdict.choice.candidate.file, work / "adapter.safetensors")
    write_table(HISTORY, history_table(journal), work / "history.csv")
    write_table(SCORES, score_table(journal, verdict), work / "scores.csv")
    write_table(DIAGNOSIS, diagnosis_table(verdict), work / "diagnosis.csv")
    prompts = [prompt.prompt for prompt in (*run.data.samples, *run.data.plain)]
    sheet = checkpoint_sheet(prompts, _sheet_rows(journal, verdict))
    Image.fromarray(sheet).save(work / "sheet.png")
    metrics = {
        **_verdict_metrics(verdict),
        **_last_losses(journal),
        "trainable_parameters": count_parameters(run.transformer),
        "adapter_bytes": (work / "adapter.safetensors").stat().st_size,
    }
    write_json(work / "metrics.json", metrics)
    _log.info("chosen: %s", verdict.choice.reason)
    for finding in verdict.findings:
        _log.info("%s: %s %s", finding.name, finding.words, finding.advice)


def score_table(journal: Journal, verdict: Verdict) -> pd.DataFrame:
    """Return the table SCORES."""
    rows = {row.step: row for row in journal.history}
    records: list[dict[str, Any]] = []
    for score in verdict.scores:
        candidate = score.candidate
        validation, probe = candidate.losses(rows[candidate.step])
        values = asdict(score)
        del values["candidate"]
        records.append(
            {
                "step": candidate.step,
                "weights": candidate.weights,
                "validation_loss": validation,
                "probe_loss": probe,
                **values,
                "chosen": candidate == verdict.choice.candidate,
            }
        )
    frame = pd.DataFrame(records)
    kept = ("step", "weights", "collapsed", "chosen")
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


def _verdict_metrics(verdict: Verdict) -> dict[str, Any]:
    choice = verdict.choice
    return {
        "validation_loss_base": rounded(choice.validation_loss_base),
        "validation_loss": rounded(choice.validation_loss),
        "improvement": rounded(choice.improvement),
        "selected_step": choice.candidate.step,
        "selected_weights": choice.candidate.weights,
        "selected_because": choice.reason,
        "findings": "; ".join(finding.name for finding in verdict.findings),
    }


def _sheet_rows(journal: Journal, verdict: Verdict) -> list[CheckpointRow]:
    rows = {row.step: row for row in journal.history}
    return [
        CheckpointRow(
            score.candidate.label,
            score_notes(score, score.candidate.losses(rows[score.candidate.step])[0]),
            drawn.all,
            chosen=score.candidate == verdict.choice.candidate,
        )
        for score, drawn in zip(verdict.scores, verdict.drawn, strict=True)
    ]


def _last_losses(journal: Journal) -> dict[str, float]:
    """Return the mean losses of what is to stay as it is, over the last steps that measured any."""
    found = {}
    for name in ("regularisation_loss", "preservation_loss"):
        losses = [loss for row in journal.history if (loss := getattr(row, name)) is not None]
        if losses:
            last = losses[-_LAST_STEPS:]
            found[name] = rounded(sum(last) / len(last))
    return found
