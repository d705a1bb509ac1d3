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

from stages.reporting.charts import Axis, Chart, Dots, Line, Rule, draw_chart, rolling_mean
from stages.reporting.evidence import Evidence, Metrics
from stages.reporting.pictures import thumbnail
from stages.reporting.words import decimal, percent

_SAMPLE: Final = re.compile(r"step-(\d+)-(\d+)\.png")
_SMOOTHED_PART: Final = 20  # the moving mean spans a twentieth of the run
_SHOWN_QUANTILE: Final = 0.98  # single wild steps do not decide the chart's height
_STILL_FALLING: Final = 0.01


@dataclass(frozen=True)
class Samples:
    """Sample pictures of one prompt, one per step, as data URIs."""

    prompt: str
    pictures: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Training:
    """What the page says about training."""

    metrics: Metrics
    steps: int
    chart: Markup | None
    diagnosis: str
    samples: Sequence[Samples]


def tell_training(evidence: Evidence, prompts: Sequence[str], longest_px: int) -> Training:
    """Return the loss chart, the diagnosis and the samples of `prompts` (encode.sample_prompts)."""
    history, metrics = evidence.history.sort_values("step"), evidence.metrics["train"]
    return Training(
        metrics=metrics,
        steps=int(history["step"].max()),
        chart=_loss_chart(history, metrics),
        diagnosis=diagnose(history, metrics),
        samples=_samples(evidence.folders.trained / "samples", prompts, longest_px),
    )


def diagnose(history: pd.DataFrame, metrics: Metrics) -> str:
    """Return in words what the validation loss says: falling, settled, or rising again."""
    measured = history.loc[history["validation_loss"].notna(), ["step", "validation_loss"]]
    if len(measured) < 3:
        return "Validation was measured too seldom to say whether training was long enough."
    last = float(measured["validation_loss"].iloc[-1])
    before = float(measured["validation_loss"].iloc[-2])
    best_step = int(measured["step"].iloc[int(measured["validation_loss"].argmin())])
    selected = f"The adapter is the checkpoint of step {metrics['selected_step']:.0f}."
    if (
        best_step < int(measured["step"].iloc[-1])
        and last > 1.01 * measured["validation_loss"].min()
    ):
        return (
            f"Validation loss was lowest at step {best_step} and rose after it: "
            f"the LoRA began to learn its pictures by heart. {selected}"
        )
    if last < (1.0 - _STILL_FALLING) * before:
        return f"Validation loss was still falling at the end: more steps may help. {selected}"
    return f"Validation loss has settled. {selected}"


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
    return draw_chart(
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
