"""Rules on histories made for them; test_diagnosed_runs.py has runs that really were like that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from stages.judging.candidates import BASE_MODEL, Candidate
from stages.judging.diagnosis import HEARD_FIRST, NOTHING_WRONG, RULES, diagnose, settled
from stages.judging.findings import Evidence, Finding, Seen
from stages.judging.scoring import Score
from stages.judging.trends import measured_series
from stages.judging.uses import Use
from stages.training.state import Row

SOUND = Score(Candidate(100), 900.0, 90.0, 0.1, 0.9, 40.0, 1.1, collapsed=False)
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
    return Evidence(rows, uses, [replace(SOUND, candidate=BASE_MODEL), score], Candidate(100))


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
        (evidence([1.0] * 11), {"loss plateaued early"}),
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


OPPOSITES = (
    ("raise train.learning_rate", "lower train.learning_rate"),
    ("take more steps", "fewer steps"),
    ("raise train.rank", "lower train.rank"),
)
APART = (
    {"loss plateaued early", "under-fitting"},
    {"loss plateaued early", "loss oscillates"},
    {"loss plateaued early", "diverged"},
    {"diverged", "under-fitting"},
    {"diverged", "over-fitting"},
    {"over-fitting", "under-fitting"},
)
"""Findings that say opposite things of one and the same loss."""


def require_one_direction(findings: Sequence[Finding]) -> None:
    """Fail where two findings would turn one parameter up and down."""
    advice = " ".join(finding.advice.lower() for finding in findings)
    for up, down in OPPOSITES:
        assert not (up in advice and down in advice), [f.advice for f in findings]
    if names(findings) & {"over-fitting", "memorised"}:
        assert "raise train.learning_rate" not in advice


def seen_alone() -> dict[str, Seen]:
    """Return what each rule says of a run that it fires for."""
    wild = [1.0, 0.7, 0.8, 0.65, 0.75, 0.62, 0.7, 0.6, 0.68, 0.55, 0.58]
    spiky = evidence(FALLING)
    rows = [replace(row, loss=2.5) if row.step == 50 else row for row in spiky.history]
    runs = (
        evidence([1.0, 0.9, 0.8]),
        evidence([1.0, 0.8, 0.7, 0.9, 1.2, 1.5]),
        evidence([1.0, 0.8, 0.65, 0.6, 0.6, 0.6, 0.6, 0.599, 0.6]),
        evidence(FALLING, wild),
        replace(spiky, history=rows),
        evidence(FALLING, norms=np.linspace(0.1, 1.0, 100).tolist()),
        evidence([1.0, 0.8, 0.7, 0.65, 0.66, 0.68, 0.7], [1 - 0.08 * x for x in range(7)]),
        evidence([1.0 - 0.04 * place for place in range(11)]),
        evidence(FALLING, score=replace(SOUND, effect_mse=20.0, plain_mse=1.0)),
        evidence(FALLING, score=replace(SOUND, plain_mse=450.0, bleed=0.5)),
        evidence(FALLING, score=replace(SOUND, nearest_training=0.2)),
        evidence(FALLING, score=replace(SOUND, collapsed=True)),
    )
    seen = (rule(run, measured_series(run.history)) for run in runs for rule in RULES)
    return {one.name: one for one in seen if one is not None}


SEEN = seen_alone()


def test_every_finding_has_its_place_in_the_order() -> None:
    """None is missing from the pairs below."""
    assert set(SEEN) == set(HEARD_FIRST)
    assert len(HEARD_FIRST) == len(RULES)


@pytest.mark.parametrize(("one", "other"), [*combinations(HEARD_FIRST, 2)])
def test_no_two_findings_contradict_each_other(one: str, other: str) -> None:
    """Sixty-six pairs: the one heard first keeps all its advice, no parameter goes both ways."""
    found = settled([SEEN[other], SEEN[one]])
    require_one_direction(found)
    alone, together = settled([SEEN[one]]), {finding.name: finding for finding in found}
    assert together[one] == alone[0]


def test_a_finding_without_advice_of_its_own_is_not_told() -> None:
    """A loss that never got going asks for a higher rate, which a growing gradient forbids."""
    flat = evidence([1.0] * 11, norms=np.linspace(0.1, 1.0, 100).tolist())
    assert names(diagnose(flat)) == {"gradient norm grows"}


def test_any_run_gets_advice_in_one_direction_and_numbers_that_say_something() -> None:
    """Random losses, gradients and pictures: 300 runs."""
    random = np.random.default_rng(5)
    told: set[str] = set()
    for _ in range(300):
        count = int(random.integers(2, 12))
        slope, swing = random.uniform(0.9, 1.1), random.choice([0.0, 0.001, 0.02, 0.2])
        losses, probe = (
            [float(slope**place * (1 + swing * random.uniform())) for place in range(count)]
            for _ in range(2)
        )
        effect, plain = (float(x) for x in random.uniform(0, 60, 2))
        score = replace(
            SOUND,
            effect_mse=effect,
            plain_mse=plain,
            bleed=plain / effect,
            nearest_training=float(random.uniform(0.001, 2)),
            collapsed=bool(random.integers(2)),
        )
        growth = np.linspace(0.1, random.uniform(0.1, 1.0), 100).tolist()
        with_probe = probe if random.integers(2) else None
        found = diagnose(evidence(losses, with_probe, score, growth))
        require_one_direction(found)
        assert not any(pair <= names(found) for pair in APART), names(found)
        assert not any(" 0.0 " in f" {finding.words}" for finding in found)
        told |= names(found)
    assert told >= set(HEARD_FIRST) - {"loss spikes"}


def test_one_validation_tells_a_gap_but_no_rise() -> None:
    """Over-fitting of 0.0 % is none, and two measurements are no trend."""
    gap = {finding.name: finding for finding in diagnose(evidence([1.0, 0.9], [1.0, 0.5]))}
    assert gap["over-fitting"].words == (
        "Training pictures gained 40.0 % of the base model's loss more than others."
    )
    assert "over-fitting" not in names(diagnose(evidence([1.0, 0.9, 0.95], [1.0, 0.9, 0.85])))


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
    near = replace(score, candidate=BASE_MODEL, nearest_training=0.25)
    assert names(diagnose(replace(run, scores=[near, score]))) == {NOTHING_WRONG}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # Little beside the first phase's fall, but the second one falls and settles.
        ([1, 0.5, 0.3, 0.25, 0.24, 0.24, 0.235, 0.231, 0.229, 0.228, 0.228], {NOTHING_WRONG}),
        # Swings of the first phase alone; the second begins at the step where it ends.
        ([1, 0.7, 0.9, 0.7, 0.9, 0.7, 0.64, 0.61, 0.59, 0.58, 0.575], {NOTHING_WRONG}),
        # The second phase stops early, however evenly the run as a whole fell.
        ([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.44, 0.44, 0.44, 0.44, 0.44], {"loss plateaued early"}),
        # The second phase falls along a line, little as it is beside the first one's fall.
        ([1, 0.5, 0.3, 0.25, 0.24, 0.24, 0.235, 0.23, 0.225, 0.22, 0.215], {"under-fitting"}),
    ],
)
def test_a_trend_does_not_go_across_a_boundary(losses: list[float], expected: set[str]) -> None:
    """Each phase has an optimiser, rate and rank of its own: the last one's trend is told."""
    run = replace(evidence(losses), last_phase_begins=50)
    assert names(diagnose(run)) == expected
    whole = names(diagnose(replace(run, last_phase_begins=0)))
    assert whole != expected


def test_a_gradient_that_grows_at_a_boundary_is_none() -> None:
    """Fresh columns of B raise the norm once; that is no growth. Within the phase it is."""
    norms = [0.5] * 50 + [2.0] * 50
    run = evidence(FALLING, norms=norms)
    assert names(diagnose(run)) == {"gradient norm grows"}
    assert "gradient norm grows" not in names(diagnose(replace(run, last_phase_begins=50)))
    grows = [0.5] * 50 + np.linspace(0.5, 4.0, 50).tolist()
    run = replace(evidence(FALLING, norms=grows), last_phase_begins=50)
    assert "gradient norm grows" in names(diagnose(run))
