"""What a finished run's losses and pictures say, in words, with the numbers and what to change.

Each rule (loss_rules.py, picture_rules.py) is a function from the evidence to what it saw, or
nothing. Several can be true at once, but their advice must not pull one parameter in two
directions: what shows that there was too much training is heard before what shows too little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from stages.judging import loss_rules, picture_rules
from stages.judging.findings import Evidence, Finding, Remedy, Seen, Strength, percent
from stages.judging.trends import Series, measured_series

NOTHING_WRONG: Final = "nothing wrong"

Rule = Callable[[Evidence, Series], Seen | None]

RULES: Final[Sequence[Rule]] = (
    loss_rules.unwatched,
    loss_rules.diverged,
    loss_rules.plateaued,
    loss_rules.oscillates,
    loss_rules.spikes,
    loss_rules.gradient_grows,
    loss_rules.overfits,
    loss_rules.underfits,
    picture_rules.no_effect,
    picture_rules.bleeds,
    picture_rules.memorised,
    picture_rules.collapsed,
)
"""In the order in which their findings are told."""

HEARD_FIRST: Final = (
    "collapse",
    "memorised",
    "diverged",
    "over-fitting",
    "loss oscillates",
    "gradient norm grows",
    "loss spikes",
    "under-fitting",
    "trigger without effect",
    "bleeding",
    "loss plateaued early",
    "too few validations",
)
"""Whose remedies stand where two contradict each other.

A loss that still falls, or a trigger without effect, asks for more training even where pictures
bleed: against that there are regularisation pictures. One that settled does not."""


def diagnose(evidence: Evidence) -> list[Finding]:
    """Return what is found, in the order of the rules; "nothing wrong" where nothing is."""
    series = measured_series(evidence.history, evidence.last_phase_begins)
    findings = settled([seen for rule in RULES if (seen := rule(evidence, series))])
    if findings:
        return findings
    best = 1 - min(series.validation) / series.validation[0]
    words = f"No rule fires: validation loss fell to {percent(best)} below the base model's."
    if best == 0:
        words = "No rule fires, but validation loss never fell below the base model's."
    return [Finding(NOTHING_WRONG, words, "Keep these settings.", {"improvement": best})]


def settled(seen: Sequence[Seen]) -> list[Finding]:
    """Return the findings, in the same order, without remedies that stronger ones contradict.

    A finding that has no remedy left is another's effect, and is not told.
    """
    raised: set[Strength] = set()
    lowered: set[Strength] = set()
    kept: dict[str, list[Remedy]] = {}
    for one in sorted(seen, key=lambda one: HEARD_FIRST.index(one.name)):
        kept[one.name] = [
            remedy
            for remedy in one.remedies
            if not remedy.raises & lowered and not remedy.lowers & raised
        ]
        raised.update(*(remedy.raises for remedy in kept[one.name]))
        lowered.update(*(remedy.lowers for remedy in kept[one.name]))
    return [
        Finding(one.name, one.words, _sentence(kept[one.name]), one.numbers)
        for one in seen
        if kept[one.name]
    ]


def _sentence(remedies: Sequence[Remedy]) -> str:
    """Return remedies as one sentence, joined by `or`."""
    words = "; or ".join(remedy.words for remedy in remedies)
    return f"{words[0].upper()}{words[1:]}."
