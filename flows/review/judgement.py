"""Did it get worse? Each metric's change, with the direction that is better and its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flows.review.revisions import Change
from stages.contracts.metrics import BETTER, worse_by

Trend = Literal["better", "worse", "same", "neutral", "new", "gone"]


@dataclass(frozen=True)
class Judged:
    """A metric's change: which way it went, and how it broke its limit (empty if it did not)."""

    change: Change
    trend: Trend
    broken: str = ""


def judge_metrics(changes: Sequence[Change], limits: Mapping[str, float]) -> list[Judged]:
    """Return every metric of `changes` with its trend; a limit concerns only what is measured.

    A limited metric that was there before and is gone breaks its limit: leaving out the stage
    that measures it is no way to pass. One that was never measured is not held to anything.
    """
    return [_judged(change, limits.get(change.name)) for change in changes]


def _judged(change: Change, limit: float | None) -> Judged:
    before, after = change.before, change.after
    if before == after:
        return Judged(change, "same")
    if before is None:
        return Judged(change, "new")
    if after is None:
        broken = "" if limit is None else "was measured before, and is not any more"
        return Judged(change, "gone", broken)
    if change.name not in BETTER or not (_is_number(before) and _is_number(after)):
        return Judged(change, "neutral")
    amount = worse_by(change.name, float(before), float(after))
    broken = ""
    if limit is not None and amount > limit:
        broken = f"worse by {amount:.4g}; {limit:g} is allowed"
    return Judged(change, "worse" if amount > 0 else "better", broken)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
