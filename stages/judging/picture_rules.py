"""What the chosen checkpoint's pictures show: too little, too much, copies, nothing at all."""

from __future__ import annotations

from typing import Final

from stages.judging.findings import (
    LESS_TRAINING,
    RANK,
    RATE,
    STEPS,
    Evidence,
    Remedy,
    Seen,
    percent,
)
from stages.judging.scoring import COPY_RATIO
from stages.judging.trends import Series

LEAST_EFFECT_MSE: Final = 25.0
"""Five grey levels of 255, root mean square: hardly seen."""

MUCH_BLEED: Final = 0.25
"""The line that the report draws, too."""


def no_effect(evidence: Evidence, _: Series) -> Seen | None:
    """Return "trigger without effect": pictures with it are those of the base model."""
    effect = evidence.score.effect_mse
    if effect is None or effect >= LEAST_EFFECT_MSE:
        return None
    levels = f"{effect**0.5:.1f}"
    levels = "less than 0.1" if levels == "0.0" else levels
    words = (
        f"With the trigger, pictures differ from the base model's by {levels} grey levels of 255: "
        "hardly seen."
    )
    remedies = (
        Remedy("see that every caption begins with the trigger"),
        Remedy("raise train.learning_rate", raises=RATE),
        Remedy("take more steps", raises=STEPS),
        Remedy("raise train.rank", raises=RANK),
    )
    return Seen("trigger without effect", words, remedies, {"effect_mse": effect})


def bleeds(evidence: Evidence, _: Series) -> Seen | None:
    """Return "bleeding": pictures without the trigger moved as well."""
    score = evidence.score
    if score.bleed is None or score.bleed < MUCH_BLEED or score.plain_mse is None:
        return None
    if score.plain_mse < LEAST_EFFECT_MSE:
        return None
    words = (
        f"Pictures without the trigger moved {percent(score.bleed)} as far from the base model's "
        "as those with it."
    )
    remedies = (
        Remedy("add regularisation pictures or output preservation"),
        Remedy("take fewer steps", lowers=LESS_TRAINING),
        Remedy("lower train.rank", lowers=RANK),
    )
    numbers = {"bleed": score.bleed, "plain_mse": score.plain_mse}
    return Seen("bleeding", words, remedies, numbers)


def memorised(evidence: Evidence, _: Series) -> Seen | None:
    """Return "memorised": a sample picture is a copy of a training picture."""
    nearest, base = evidence.score.nearest_training, evidence.scores[0].nearest_training
    if nearest is None or base is None or nearest >= min(COPY_RATIO, base):
        return None
    times = f"{nearest:.2f}"
    times = "less than 0.01" if times == "0.00" else times
    words = (
        f"A sample picture is {times} times as far from a training picture as training pictures "
        "are from each other: it is a copy."
    )
    remedies = (
        Remedy("take an earlier checkpoint or fewer steps", lowers=LESS_TRAINING),
        Remedy("lower train.rank", lowers=RANK),
        Remedy("add pictures"),
    )
    return Seen("memorised", words, remedies, {"nearest_training": nearest})


def collapsed(evidence: Evidence, _: Series) -> Seen | None:
    """Return "collapse": a checkpoint's pictures show nothing, or all the same."""
    spoilt = [score.candidate.label for score in evidence.scores if score.collapsed]
    if not spoilt:
        return None
    words = f"Pictures are uniform, or alike for all prompts, at {'; '.join(spoilt)}."
    remedies = (
        Remedy("take an earlier checkpoint", lowers=LESS_TRAINING | RANK),
        Remedy("lower train.learning_rate", lowers=RATE),
    )
    numbers = {"detail": evidence.score.detail, "diversity": evidence.score.diversity}
    known = {name: value for name, value in numbers.items() if value is not None}
    return Seen("collapse", words, remedies, known)
