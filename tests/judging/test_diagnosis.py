"""Rules on histories made for them; test_diagnosed_runs.py has runs that really were like that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from stages.judging.diagnosis import NOTHING_WRONG, Evidence, Finding, diagnose
from stages.judging.scoring import Score
from stages.judging.uses import Use
from stages.training.state import Row

SOUND = Score(100, 900.0, 90.0, 0.1, 0.9, 40.0, 1.1, collapsed=False)
FALLING = [1.0 - 0.4 * (1 - np.exp(-step / 25)) for step in range(0, 101, 10)]


def evidence(
    validation: Sequence[float],
    probe: Sequence[float] | None = None,
    score: Score = SOUND,
    norms: Sequence[float] = (0.5,) * 100,
) -> Evidence:
    """Return a run of 100 steps with these losses at equal intervals, the base's first."""
    every = 100 // (len(validation) - 1)
    rows = []
    for step in range(101):
        place, rest = divmod(step, every)
        due = rest == 0 and place < len(validation)
        rows.append(
            Row(
                step,
                0.5 if step else None,
                norms[step - 1] if step else None,
                0.001,
                validation[place] if due else None,
                probe_loss=probe[place] if due and probe is not None else None,
            )
        )
    uses = {step: (Use("picture", 0.5),) for step in range(1, 101)}
    return Evidence(rows, uses, [replace(SOUND, step=0), score], 100)


def names(found: Sequence[Finding]) -> set[str]:
    """Return what was found."""
    return {finding.name for finding in found}


def test_nothing_wrong() -> None:
    """Losses that fall and settle, pictures that change where they should."""
    (finding,) = diagnose(evidence(FALLING, FALLING))
    assert finding.name == NOTHING_WRONG
    assert "39.3 % below the base model's" in finding.words


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (evidence([1.0, 0.9, 0.8]), {"too few validations"}),
        (evidence([1.0, 0.8, 0.65, 0.6, 0.6, 0.6, 0.6, 0.599, 0.6]), {"loss plateaued early"}),
        (evidence([1.0] * 11), {"loss plateaued early", "under-fitting"}),
        (evidence([1.0 - 0.04 * place for place in range(11)]), {"under-fitting"}),
        (
            evidence([1.0, 0.7, 0.8, 0.65, 0.75, 0.62, 0.7, 0.6, 0.68, 0.55, 0.58]),
            {"loss oscillates", "over-fitting"},
        ),
        (
            evidence(FALLING, [1.0, 0.7, 0.8, 0.65, 0.75, 0.62, 0.7, 0.6, 0.68, 0.55, 0.58]),
            {"loss oscillates"},
        ),
        (evidence([1.0, 0.8, 0.7, 0.65, 0.66, 0.68, 0.7], [1 - 0.08 * x for x in range(7)]),
         {"over-fitting"}),
        (evidence([1.0, 0.99, 0.98, 0.97, 0.97, 0.96], [1.0, 0.7, 0.6, 0.55, 0.53, 0.52]),
         {"over-fitting"}),
        (evidence([1.0, 0.8, 0.7, 0.9, 1.2, 1.5], [1.0, 0.8, 0.7, 0.9, 1.2, 1.5]),
         {"diverged"}),
        (evidence(FALLING, norms=np.linspace(0.1, 1.0, 100).tolist()), {"gradient norm grows"}),
        (evidence(FALLING, score=replace(SOUND, effect_mse=20.0, plain_mse=1.0)),
         {"trigger without effect"}),
        (evidence(FALLING, score=replace(SOUND, plain_mse=450.0, bleed=0.5)), {"bleeding"}),
        (evidence(FALLING, score=replace(SOUND, nearest_training=0.2)), {"memorised"}),
        (evidence(FALLING, score=replace(SOUND, collapsed=True)), {"collapse"}),
    ],
)  # fmt: skip
def test_each_condition_has_its_name(run: Evidence, expected: set[str]) -> None:
    """And no other name than those."""
    found = diagnose(run)
    assert names(found) == expected
    assert all(finding.numbers and finding.advice for finding in found)


def test_little_bleed_in_little_effect_is_none() -> None:
    """Three grey levels are not seen, whatever they are a quarter of."""
    score = replace(SOUND, effect_mse=30.0, plain_mse=9.0, bleed=0.3)
    assert names(diagnose(evidence(FALLING, score=score))) == {NOTHING_WRONG}


def test_spikes_name_the_picture_and_what_to_do() -> None:
    """One picture in every tenth step, with five times the loss."""
    run = evidence(FALLING)
    uses = {step: (Use("bad.png" if step % 10 == 0 else "good.png", 0.5),) for step in run.uses}
    rows = [
        replace(row, loss=2.5) if row.step % 10 == 0 and row.step else row for row in run.history
    ]
    (finding,) = diagnose(replace(run, history=rows, uses=uses))
    assert finding.name == "loss spikes"
    assert "The picture is bad.png: 100.0 % of its uses spiked." in finding.words
    assert "Look at bad.png" in finding.advice


def test_what_the_base_model_draws_is_no_copy() -> None:
    """Plain backgrounds are near each other before any training."""
    score = replace(SOUND, nearest_training=0.3)
    run = evidence(FALLING, score=score)
    near = replace(score, step=0, nearest_training=0.25)
    assert names(diagnose(replace(run, scores=[near, score]))) == {NOTHING_WRONG}
