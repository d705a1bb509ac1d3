"""The first screen: the LoRA in one sentence, its numbers, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stages.contracts.blocks import BlockId
from stages.contracts.params import Params
from stages.reporting.block_map import share_is_uncertain
from stages.reporting.certainty import Answers, answer
from stages.reporting.evidence import Evidence
from stages.reporting.pairs import DEVELOP, WITHOUT_TRIGGER, Pair, read_pairs
from stages.reporting.pictures import full_pictures
from stages.reporting.words import (
    agreement,
    count,
    decimal,
    error,
    file_size,
    grey_levels,
    percent,
)

ROOM_CHARACTERS: Final = 4_000_000
"""Data URIs of the comparisons; see BUDGET_CHARACTERS of the gallery."""

_MUCH_BLEED: Final = 0.25


@dataclass(frozen=True)
class Fact:
    """A number in large type and what it means."""

    figure: str
    meaning: str


@dataclass(frozen=True)
class Finding:
    """One reason to trust, or to doubt, the numbers; `caution` where it is a reason to doubt."""

    name: str
    figure: str
    meaning: str
    caution: bool


@dataclass(frozen=True)
class Comparison:
    """The base model's and the LoRA's picture of one pair, as data URIs."""

    key: str
    words: str
    none: str
    full: str
    with_trigger: bool


@dataclass(frozen=True)
class Overview:
    """What the first screen says."""

    title: str
    trigger: str
    base: str
    effect_mse: float
    grey_levels: str
    blocks_for_half: int
    blocks_present: int
    leader: str
    leader_share: float
    facts: Sequence[Fact]
    answers: Answers
    findings: Sequence[Finding]
    anecdotal: bool
    comparisons: Sequence[Comparison]


def tell_overview(evidence: Evidence, params: Params) -> Overview:
    """Return the words and pictures of the first screen."""
    measured, leader = evidence.metrics["evaluate"], evidence.ranked[0]
    pairs = [
        *read_pairs(evidence.rendered, evidence.folders.rendered, DEVELOP),
        *read_pairs(evidence.rendered, evidence.folders.rendered, WITHOUT_TRIGGER),
    ]
    return Overview(
        title=params.report.title,
        trigger=params.caption.trigger,
        base=base_name(evidence),
        effect_mse=measured["effect_mse"],
        grey_levels=grey_levels(measured["effect_mse"]),
        blocks_for_half=int(evidence.metrics["attribute"]["blocks_for_half"]),
        blocks_present=len(evidence.present),
        leader=str(leader.block),
        leader_share=leader.numbers["share"],
        facts=_facts(evidence),
        answers=answer(evidence, params),
        findings=_findings(evidence, params),
        anecdotal=is_anecdotal(evidence),
        comparisons=_comparisons(pairs, params.report.thumbnail_px),
    )


def base_name(evidence: Evidence) -> str:
    """Return the base model's name: its repository, or the last part of its folder."""
    repository, folder = evidence.weights.get("repository"), evidence.weights.get("folder")
    return str(repository or str(folder).rstrip("/").rpartition("/")[2])


def is_anecdotal(evidence: Evidence) -> bool:
    """Return whether all pictures are of one prompt with one seed."""
    measured = evidence.metrics["evaluate"]
    return measured["prompts"] * measured["seeds"] <= 1


def _facts(evidence: Evidence) -> list[Fact]:
    slim = evidence.metrics["slim"]
    whole = evidence.folders.adapter.stat().st_size
    return [
        *_training_facts(evidence),
        Fact(
            f"{evidence.metrics['attribute']['blocks_for_half']:.0f} of {len(evidence.present)}",
            "blocks do half of the whole effect",
        ),
        Fact(
            percent(slim["bytes_ratio"], 0),
            f"of the file is left when slim: {file_size(whole)} becomes {file_size(slim['bytes'])}",
        ),
        Fact(
            percent(slim["recovery"], 0),
            "of the effect recovered by the slim file on held-out prompts, "
            f"its interval from {percent(slim['recovery_low'], 0)}",
        ),
    ]


def _training_facts(evidence: Evidence) -> list[Fact]:
    """Return what training achieved; nothing of a LoRA that was not trained here."""
    if evidence.making is None:
        return []
    meaning = "validation loss against the base model, on pictures that were never trained on"
    return [Fact(percent(-evidence.metrics["train"]["improvement"], 0), meaning)]


def _findings(evidence: Evidence, params: Params) -> list[Finding]:
    findings = [_sample_size(evidence, params), _completeness(evidence), _uncertain(evidence)]
    measured = evidence.metrics["evaluate"]
    if "rank_tau" in measured:
        findings.append(_ranking(measured["rank_tau"]))
    for of_what, stage in (("shares", "attribute"), ("pictures", "evaluate")):
        if "split_half_tau" in evidence.metrics[stage]:
            tau = evidence.metrics[stage]["split_half_tau"]
            findings.append(_stability(of_what, tau))
    if "noise_floor_mse" in measured:
        findings.append(_repeat_floor(evidence, measured["noise_floor_mse"]))
    if "bleed" in measured:
        findings.append(_bleed(evidence, measured["bleed"]))
    return findings


def _sample_size(evidence: Evidence, params: Params) -> Finding:
    measured = evidence.metrics["evaluate"]
    prompts, seeds = int(measured["prompts"]), int(measured["seeds"])
    asked, noise = len(params.prompts.develop + params.attribute.prompts), params.attribute.seeds
    coverage = percent(params.attribute.confidence, 0)
    if is_anecdotal(evidence):
        meaning = "One prompt with one seed is an anecdote: it says nothing about other prompts."
    else:
        meaning = (
            f"pictures of each block alone; shares are from {asked} × {len(noise)}. "
            f"Intervals are {coverage} ones, by resampling prompts and seeds; from few prompts "
            "they are too narrow."
        )
        if prompts * seeds < 8:
            meaning += " Few pictures: read neighbours in their ranking as equal."
    return Finding("Sample", f"{prompts} × {seeds}", meaning, prompts * seeds < 8)


def _completeness(evidence: Evidence) -> Finding:
    gap = evidence.metrics["attribute"]["completeness_error"]
    meaning = "is how far the shares are from adding up to exactly 100 %."
    return Finding("Completeness", percent(gap, 2), meaning, gap > 0.05)


def _uncertain(evidence: Evidence) -> Finding:
    number = sum(share_is_uncertain(result) for result in evidence.present)
    total = len(evidence.present)
    meaning = "blocks have an interval that includes 0: they may do nothing at all."
    return Finding("Near zero", f"{number} of {total}", meaning, number > total / 2)


def _ranking(tau: float) -> Finding:
    meaning = (
        f"{agreement(tau).capitalize()} agreement (Kendall τ) between shares and the pictures of "
        "single blocks. Blocks act together, so the two need not rank alike."
    )
    return Finding("Agreement", decimal(tau), meaning, tau < 0.4)


def _stability(of_what: str, tau: float) -> Finding:
    ranked = {"shares": "shares", "pictures": "pictures of single blocks"}[of_what]
    meaning = (
        f"{agreement(tau).capitalize()} agreement (Kendall τ) between the rankings by {ranked} "
        "from two halves of the prompts."
    )
    return Finding(f"Stability of {of_what}", decimal(tau), meaning, tau < 0.4)


def _repeat_floor(evidence: Evidence, floor: float) -> Finding:
    below = sum(result.number("only_in_noise") == 1.0 for result in evidence.present)
    blocks = f"{count(below, 'block')} cannot be told from rounding" if below else ""
    tie = "; they share a rank." if below > 1 else "."
    meaning = "is the MSE of a picture drawn again in another batch. "
    meaning += f"{blocks}{tie}" if below else "No block is within rounding."
    return Finding("Repeat floor", error(floor), meaning, below > 0)


def _bleed(evidence: Evidence, bleed: float) -> Finding:
    bleeds = bleed > _MUCH_BLEED
    verdict = ": this LoRA bleeds" if bleeds else f"; up to {decimal(_MUCH_BLEED)} counts as little"
    times = f"{decimal(bleed)} times as much as with it (MSE)"
    meaning = f"Without the trigger word pictures change {times}{verdict}."
    stopped = {
        str(result.block): value
        for result in evidence.present
        if (value := result.number("bleed_stopped")) is not None
    }
    if stopped:
        block = max(stopped, key=stopped.__getitem__)
        meaning += f" Switching {block} off removes {percent(stopped[block], 0)} of that change."
    elif beyond := _shares_beyond(evidence):
        most, there, here = max(beyond, key=lambda one: one[1] - one[2])
        meaning += f" {most} has {percent(there)} of the change without the word,"
        meaning += f" {percent(here)} with it."
    return Finding("Bleed", percent(bleed, 0), meaning, bleeds)


def _shares_beyond(evidence: Evidence) -> list[tuple[BlockId, float, float]]:
    """Return each block's share without the trigger and with it, where both are known."""
    return [
        (result.block, there, here)
        for result in evidence.present
        if (there := result.number("plain_share")) is not None
        and (here := result.number("share")) is not None
    ]


def _comparisons(pairs: Sequence[Pair], longest_px: int) -> list[Comparison]:
    files = [pair.files[variant] for pair in pairs for variant in ("none", "full")]
    pictures = full_pictures(files, longest_px, ROOM_CHARACTERS)
    return [
        Comparison(
            key=pair.key,
            words=pair.words,
            none=none,
            full=full,
            with_trigger=not pair.prompt.startswith(WITHOUT_TRIGGER),
        )
        for pair, none, full in zip(pairs, pictures[::2], pictures[1::2], strict=True)
    ]
