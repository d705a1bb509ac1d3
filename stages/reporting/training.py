"""How the LoRA was trained: losses against the base line, and pictures drawn on the way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from markupsafe import Markup

from stages.reporting.charts import (
    Axis,
    Chart,
    Dots,
    Line,
    Rule,
    draw_charts,
    rolling_mean,
)
from stages.reporting.evidence import Evidence, Metrics
from stages.reporting.pictures import thumbnail
from stages.reporting.words import decimal, percent

_SAMPLE: Final = re.compile(r"step-(\d+)-(\d+)\.png")
_SMOOTHED_PART: Final = 20  # the moving mean spans a twentieth of the run
_SHOWN_QUANTILE: Final = 0.98  # single wild steps do not decide the chart's height
_SHEET_PX: Final = 1400

SCORE_HEADINGS: Final = (
    "validation loss",
    "on training pictures",
    "effect, MSE",
    "bleed",
    "diversity",
    "nearest training picture",
)
"""What `Checkpoint.numbers` are; see docs/checkpoints.md."""


BANDS: Final = {
    "low": "below 1/3: texture and edges",
    "middle": "1/3 to 2/3",
    "high": "2/3 and above: what is where",
}
"""Bands of the noise level sigma, by the columns of history.csv that measure them."""

MOVING_AVERAGE: Final = "moving average"


@dataclass(frozen=True)
class Samples:
    """Sample pictures of one prompt, one per step, as data URIs."""

    prompt: str
    pictures: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Band:
    """Validation loss in one band of sigma: the base model's, the last one, and the change."""

    name: str
    words: str
    base: float
    last: float

    @property
    def change(self) -> float:
        """The last one relative to the base model's: -0.4 is 40 % lower."""
        return self.last / self.base - 1.0 if self.base else 0.0


@dataclass(frozen=True)
class Checkpoint:
    """A row of scores: SCORE_HEADINGS says what the numbers are."""

    name: str
    numbers: Sequence[str]
    chosen: bool
    collapsed: bool


@dataclass(frozen=True)
class Finding:
    """What the run shows and what to change."""

    name: str
    words: str
    advice: str


@dataclass(frozen=True)
class Training:
    """What the page says about training; `sheet` is checkpoints x prompts as a data URI."""

    metrics: Metrics
    steps: int
    chart: Markup | None
    bands: Sequence[Band]
    bands_chart: Markup | None
    bands_step: int
    reason: str
    selected: str
    findings: Sequence[Finding]
    headings: Sequence[str]
    checkpoints: Sequence[Checkpoint]
    sheet: str
    samples: Sequence[Samples]


def tell_training(evidence: Evidence, prompts: Sequence[str], longest_px: int) -> Training | None:
    """Return the loss chart, findings, scores and samples of `prompts` (encode.sample_prompts).

    None for a LoRA that was not trained here.
    """
    making = evidence.making
    if making is None:
        return None
    history, metrics = making.history.sort_values("step"), evidence.metrics["train"]
    banded = _banded(history)
    return Training(
        metrics=metrics,
        steps=int(history["step"].max()),
        chart=_loss_chart(history, metrics),
        bands=_bands(banded),
        bands_chart=_bands_chart(banded),
        bands_step=int(banded["step"].max()) if len(banded) else 0,
        reason=str(metrics["selected_because"]),
        selected=_checkpoint_name(int(metrics["selected_step"]), str(metrics["selected_weights"])),
        findings=[
            Finding(row["finding"], row["words"], row["advice"])
            for row in making.diagnosis.to_dict("records")
        ],
        headings=SCORE_HEADINGS,
        checkpoints=_checkpoints(making.scores),
        sheet=thumbnail(evidence.folders.trained / "sheet.png", _SHEET_PX),
        samples=_samples(evidence.folders.trained / "samples", prompts, longest_px),
    )


def _checkpoints(scores: pd.DataFrame) -> list[Checkpoint]:
    """Return the scores of every checkpoint as words; a dash where one was not measured."""

    def shown(value: float, digits: int) -> str:
        return "–" if pd.isna(value) else decimal(value, digits)

    return [
        Checkpoint(
            name=_checkpoint_name(int(row["step"]), str(row["weights"])),
            numbers=[
                shown(row["validation_loss"], 4),
                shown(row["probe_loss"], 4),
                shown(row["effect_mse"], 0),
                shown(row["bleed"], 2),
                shown(row["diversity"], 2),
                shown(row["nearest_training"], 2),
            ],
            chosen=bool(row["chosen"]),
            collapsed=bool(row["collapsed"]),
        )
        for row in scores.sort_values(["step", "weights"], ascending=[True, False]).to_dict(
            "records"
        )
    ]


def _checkpoint_name(step: int, weights: str) -> str:
    name = f"step {step}" if step else "base model"
    return f"{name}, {MOVING_AVERAGE}" if weights == "ema" else name


def _loss_chart(history: pd.DataFrame, metrics: Metrics) -> Markup | None:
    trained = history[history["loss"].notna()]
    checked = history[history["validation_loss"].notna()]
    if trained.empty or int(history["step"].max()) < 1:
        return None
    raw = list(zip(trained["step"].astype(float), trained["loss"], strict=True))
    checks = list(zip(checked["step"].astype(float), checked["validation_loss"], strict=True))
    base = metrics["validation_loss_base"]
    tallest = float(np.quantile(trained["loss"], _SHOWN_QUANTILE))
    high = 1.06 * max([tallest, base, *(y for _, y in checks)])
    least = min([float(trained["loss"].min()), *(y for _, y in checks)])
    low = max(0.0, least - 0.12 * (high - least))  # room for the words of the rule
    titles = [f"step {x:.0f}: validation loss {decimal(y, 4)}" for x, y in checks]
    improvement = percent(metrics["improvement"], 0)
    return draw_charts(
        Chart(
            x=Axis(0.0, float(history["step"].max()), "step"),
            y=Axis(low, high, "loss"),
            summary=f"Losses over steps; validation ends {improvement} below the base model",
            lines=[
                Line([(x, min(y, high)) for x, y in raw], "raw"),
                Line(rolling_mean(raw, max(1, len(raw) // _SMOOTHED_PART)), "plain"),
                Line(checks, "accent"),
            ],
            dots=[Dots(checks, titles, "accent")],
            rules=[
                Rule(base, "horizontal", "base model, validation", "dashed"),
                Rule(metrics["selected_step"], "vertical", "selected", "thin"),
            ],
        )
    )


def _banded(history: pd.DataFrame) -> pd.DataFrame:
    """Return the steps at which every band was measured; a band without sigmas is left out."""
    columns = [f"validation_loss_{band}" for band in BANDS]
    measured = [name for name in columns if name in history and history[name].notna().any()]
    return history.loc[history[measured].notna().all(axis=1), ["step", *measured]]


def _bands(banded: pd.DataFrame) -> list[Band]:
    return [
        Band(band, words, float(banded[column].iloc[0]), float(banded[column].iloc[-1]))
        for band, words in BANDS.items()
        if (column := f"validation_loss_{band}") in banded
    ]


def _bands_chart(banded: pd.DataFrame) -> Markup | None:
    """Return the validation loss of every band relative to the base model's, over the steps."""
    columns = {
        band: banded[f"validation_loss_{band}"]
        for band in BANDS
        if f"validation_loss_{band}" in banded
    }
    if len(banded) < 2 or not columns:
        return None
    steps = banded["step"].astype(float)
    relative = {band: values / values.iloc[0] for band, values in columns.items()}
    lowest = min(float(values.min()) for values in relative.values())
    highest = max(1.0, *(float(values.max()) for values in relative.values()))
    told = ", ".join(f"{band} {percent(values.iloc[-1], 0)}" for band, values in relative.items())
    return draw_charts(
        Chart(
            x=Axis(0.0, float(steps.max()), "step"),
            y=Axis(max(0.0, lowest - 0.1), highest + 0.05, "loss, % of the base model's", True),
            summary=f"Validation loss by noise level, of the base model's at the end: {told}",
            lines=[
                Line(list(zip(steps, values, strict=True)), f"band-{band}")
                for band, values in relative.items()
            ],
            dots=[
                Dots(
                    list(zip(steps, values, strict=True)),
                    [
                        f"step {step:.0f}, {band} noise: {percent(value, 0)} of the base model's"
                        for step, value in zip(steps, values, strict=True)
                    ],
                    f"band-{band}",
                )
                for band, values in relative.items()
            ],
            rules=[Rule(1.0, "horizontal", "base model", "dashed")],
        )
    )


def _samples(folder: Path, prompts: Sequence[str], longest_px: int) -> list[Samples]:
    """Return the samples by prompt; files are samples/step-<step>-<prompt>.png."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for file in folder.glob("*.png"):
        if match := _SAMPLE.fullmatch(file.name):
            found.setdefault(int(match[2]), []).append((int(match[1]), file))
    return [
        Samples(
            prompt=prompts[number] if number < len(prompts) else f"sample {number}",
            pictures=[(step, thumbnail(file, longest_px)) for step, file in sorted(found[number])],
        )
        for number in sorted(found)
    ]
