"""What a rule of the diagnosis says, and what it looks at.

A finding's remedies say which way they move the strength of a training: its learning rate, its
steps, its rank. Where two findings would move one of them in opposite ways, the one whose evidence
is stronger is heard (diagnosis.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stages.judging.candidates import Candidate
from stages.judging.scoring import Score
from stages.judging.uses import Use
from stages.training.state import Row

Strength = Literal["learning_rate", "steps", "rank"]
"""Parameters that make a training stronger when they are raised."""


@dataclass(frozen=True)
class Remedy:
    """One thing to change, in words; what it raises, and what it is against raising."""

    words: str
    raises: frozenset[Strength] = field(default=frozenset())
    lowers: frozenset[Strength] = field(default=frozenset())


@dataclass(frozen=True)
class Seen:
    """What a rule saw: a name, the words, the numbers, and remedies, the best first."""

    name: str
    words: str
    remedies: Sequence[Remedy]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Finding:
    """One thing that the run shows: its name, what was seen, what to change, and the numbers."""

    name: str
    words: str
    advice: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """All that the rules look at.

    `scores` are those of the checkpoints, the base model's first; `chosen` is one of them; `uses`
    what each step was made of; the last phase starts from the step `last_phase_begins`.
    """

    history: Sequence[Row]
    uses: Mapping[int, Sequence[Use]]
    scores: Sequence[Score]
    chosen: Candidate
    last_phase_begins: int = 0

    @property
    def score(self) -> Score:
        """The chosen checkpoint's."""
        return next(score for score in self.scores if score.candidate == self.chosen)


RATE: frozenset[Strength] = frozenset({"learning_rate"})
STEPS: frozenset[Strength] = frozenset({"steps"})
RANK: frozenset[Strength] = frozenset({"rank"})
LESS_TRAINING = RATE | STEPS
"""What fewer steps are against: a higher rate would undo them."""


def percent(part: float) -> str:
    """Return a part as `12.3 %`, one that rounds to none as `next to nothing`."""
    words = f"{100 * part:.1f} %"
    return "next to nothing" if words in ("0.0 %", "-0.0 %") else words
