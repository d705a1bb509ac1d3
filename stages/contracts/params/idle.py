"""Values that would change nothing: refused, since whoever sets one expects it to do something.

Each such key has one neutral value, which every preset holds and which is always accepted, so
that a preset stays valid whatever else is changed in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from stages.contracts.params.fields import Breach, BrokenRulesError

NEUTRAL: Final[dict[str, Any]] = {
    "caption.subject": "",
    "caption.prefix": "",
    "caption.suffix": "",
    "caption.tag_threshold": 0.35,
    "caption.character_threshold": 0.85,
    "encode.class_pictures": 20,
    "encode.trigger_class": "",
    "prepare.focus": "centre",
    "slim.candidates": 4,
    "slim.nodes": 2,
    "train.mask_floor": 0.1,
    "train.min_snr_gamma": 5.0,
    "train.output_preservation_share": 1.0,
    "train.regularisation_share": 0.5,
    "train.regularisation_weight": 1.0,
    "train.scheduler_cycles": 1,
    "train.scheduler_power": 1.0,
    "train.timestep_location": 0.0,
    "train.timestep_scale": 1.0,
}
"""What a key that nothing reads has to be, by section and key."""


@dataclass(frozen=True)
class Use:
    """A value (`name`: section and key), whether anything reads it, and what would."""

    name: str
    value: Any
    read: bool
    needs: str


def require_effect(uses: Sequence[Use], *, within: str = "") -> None:
    """Accept values that are read, and neutral ones.

    Args:
        uses: of one section, or of several.
        within: the section whose rule asks, "" for the whole file.

    Raises:
        BrokenRulesError: some would change nothing; all are named.
    """
    breaches = [
        Breach(
            use.name.removeprefix(f"{within}."),
            f"{use.value!r} has no effect without {use.needs}",
            f"Set it to {_written(NEUTRAL[use.name])}, or ask for {use.needs}.",
        )
        for use in uses
        if not use.read and use.value != NEUTRAL[use.name]
    ]
    if breaches:
        raise BrokenRulesError(breaches)


def _written(value: Any) -> str:
    return '""' if value == "" else str(value)
