"""The first screen says what was found, and how sure it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.reporting.evidence import BlockResult, Evidence
from stages.reporting.overview import base_name, is_anecdotal, tell_overview
from stages.reporting.words import percent
from tests.reporting.example import example_params


def with_metrics(evidence: Evidence, stage: str, **changes: float) -> Evidence:
    """Return the evidence with other metrics of one stage."""
    changed = {**evidence.metrics[stage], **changes}
    return replace(evidence, metrics={**evidence.metrics, stage: changed})


def test_the_sentence_has_the_numbers_of_the_tables(evidence: Evidence) -> None:
    """Nobody should have to look for the leader or the base model."""
    overview = tell_overview(evidence, example_params())
    assert overview.leader == str(evidence.ranked[0].block)
    assert overview.leader_share == evidence.ranked[0].numbers["share"]
    assert overview.blocks_present == 6
    assert overview.base == "nano-flux"
    assert overview.trigger == "tok"
    assert len(overview.facts) == 4
    assert overview.facts[0].figure.startswith("−48")


def test_comparisons_hold_prompts_without_the_trigger_apart(evidence: Evidence) -> None:
    """There both halves should look alike, and the page says so."""
    comparisons = tell_overview(evidence, example_params()).comparisons
    assert [item.with_trigger for item in comparisons] == [True] * 4 + [False]
    assert all(item.none != item.full for item in comparisons)


def test_doubts_are_told(evidence: Evidence) -> None:
    """Each weakness of the evidence is a caution, not a footnote."""
    findings = {f.name: f for f in tell_overview(evidence, example_params()).findings}
    wanted = {"Sample", "Completeness", "Near zero", "Agreement", "Repeat floor", "Bleed"}
    assert set(findings) == wanted | {"Stability of pictures"}
    assert findings["Sample"].caution
    assert findings["Sample"].figure == "2 × 2"
    assert not findings["Completeness"].caution
    weak = with_metrics(evidence, "evaluate", rank_tau=0.1, bleed=0.6, split_half_tau=0.1)
    weak = with_metrics(weak, "attribute", split_half_tau=0.2)
    doubted = {f.name for f in tell_overview(weak, example_params()).findings if f.caution}
    stability = {"Stability of shares", "Stability of pictures"}
    assert {"Agreement", "Bleed", "Sample"} | stability <= doubted


def test_the_block_that_bleeds_most_is_named(evidence: Evidence) -> None:
    """Whoever wants less bleeding learns which block to drop, and how much that would bring."""

    def bleed(blocks: tuple[BlockResult, ...]) -> str:
        findings = tell_overview(replace(evidence, blocks=blocks), example_params()).findings
        return next(finding.meaning for finding in findings if finding.name == "Bleed")

    guessed = max(
        evidence.present,
        key=lambda result: result.numbers["plain_share"] - result.numbers["share"],
    )
    there = percent(guessed.numbers["plain_share"])
    here = percent(guessed.numbers["share"])
    said = f"{guessed.block} has {there} of the change without the word, {here} with it."
    assert said in bleed(evidence.blocks)
    measured = tuple(
        replace(result, numbers={**result.numbers, "bleed_stopped": 0.1 * place})
        if result.present
        else result
        for place, result in enumerate(evidence.blocks)
    )
    last = evidence.present[-1]
    part = percent(0.1 * evidence.blocks.index(last), 0)
    assert f"Switching {last.block} off removes {part} of that change." in bleed(measured)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.576, "change 1.58 times as much as with it (MSE): this LoRA bleeds."),
        (0.25, "change 0.25 times as much as with it (MSE); up to 0.25 counts as little."),
    ],
)
def test_bleeding_is_told_as_what_it_is(evidence: Evidence, value: float, words: str) -> None:
    """The change without the word next to that with it; at the limit it is not yet a caution."""
    findings = tell_overview(with_metrics(evidence, "evaluate", bleed=value), example_params())
    bleed = next(finding for finding in findings.findings if finding.name == "Bleed")
    assert words in bleed.meaning
    assert bleed.caution == (value > 0.25)


@pytest.mark.parametrize(
    ("within", "words"),
    [
        (0, "No block is within rounding."),
        (1, "1 block cannot be told from rounding."),
        (3, "3 blocks cannot be told from rounding; they share a rank."),
    ],
)
def test_ties_within_rounding_are_counted(evidence: Evidence, within: int, words: str) -> None:
    """A picture drawn again in another batch is the least that can be told apart."""
    marked = iter([1.0] * within + [0.0] * len(evidence.present))
    blocks = tuple(
        replace(result, numbers={**result.numbers, "only_in_noise": next(marked)})
        if result.present
        else result
        for result in evidence.blocks
    )
    findings = tell_overview(replace(evidence, blocks=blocks), example_params()).findings
    floor = next(finding for finding in findings if finding.name == "Repeat floor")
    assert floor.meaning.endswith(words)
    assert floor.caution == (within > 0)


def test_one_prompt_with_one_seed_is_an_anecdote(evidence: Evidence) -> None:
    """It is labelled as such, in so many words."""
    assert not is_anecdotal(evidence)
    single = with_metrics(evidence, "evaluate", prompts=1, seeds=1)
    overview = tell_overview(single, example_params())
    assert overview.anecdotal
    assert "anecdote" in overview.findings[0].meaning


def test_what_was_not_measured_is_left_out(evidence: Evidence) -> None:
    """No number is better than an invented one."""
    metrics = dict(evidence.metrics["evaluate"])
    for name in ("rank_tau", "split_half_tau", "noise_floor_mse", "bleed"):
        del metrics[name]
    bare = replace(evidence, metrics={**evidence.metrics, "evaluate": metrics})
    findings = tell_overview(bare, example_params()).findings
    assert [f.name for f in findings] == ["Sample", "Completeness", "Near zero"]


def test_base_is_a_repository_or_a_folder(evidence: Evidence) -> None:
    """As a person would name it."""
    hub = replace(evidence, weights={"repository": "black-forest-labs/FLUX.1-dev", "folder": "x"})
    assert base_name(hub) == "black-forest-labs/FLUX.1-dev"
