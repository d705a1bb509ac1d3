"""At which strength to begin with a LoRA: read off the strength sweep of evaluate.

The sweep compares the pictures at each strength with those at strength 1. It says how much of the
effect is there, not whether a picture is better, so nothing above 1 is ever recommended: there,
recovery falls because the effect goes on growing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import pandas as pd

WHOLE: Final = 1.0
_BELOW: Final = "the lower end of its interval is below"
_COLUMNS: Final = ("strength", "recovery", "recovery_low")


@dataclass(frozen=True)
class Recommendation:
    """A strength, and in a sentence why it is that one."""

    strength: float
    because: str


def recommend_strength(sweep: pd.DataFrame, bar: float) -> Recommendation:
    """Return the least strength of the sweep that still does the job.

    That is: its recovery's lower end, and that of every strength between it and 1, is at least
    `bar`. Less strength leaves more of the base model alone and more room for other LoRAs.

    Args:
        sweep: the STRENGTHS table.
        bar: slim.recovery, what the slim file has to recover.
    """
    columns = (sweep[name].astype(float).tolist() for name in _COLUMNS)
    tried = sorted(row for row in zip(*columns, strict=True) if 0.0 < row[0] < WHOLE)
    if not tried:
        because = "it is what was trained; params render.strengths has none between 0 and 1 to try"
        return Recommendation(WHOLE, because)
    best, lowest = WHOLE, WHOLE
    for strength, _, low in reversed(tried):
        if not low >= bar:  # an interval that is missing passes no bar
            break
        best, lowest = strength, low
    if best == WHOLE:
        strength, recovery, low = tried[-1]
        short = "there is no interval to hold against" if math.isnan(low) else _BELOW
        because = (
            f"at {strength:g} the pictures recover {recovery:.2f} of the effect, {short} "
            f"the required {bar:g} (slim.recovery)"
        )
        return Recommendation(WHOLE, because)
    because = (
        f"the interval of the pictures' recovery begins at {lowest:.2f} there, and {bar:g} "
        "(slim.recovery) was asked for"
    )
    return Recommendation(best, because)
