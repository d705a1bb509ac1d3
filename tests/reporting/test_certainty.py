"""How sure the order of the blocks is follows from their intervals, and from nothing else."""

from __future__ import annotations

import pytest

from stages.contracts.blocks import BlockId
from stages.reporting.certainty import Places, answer, possible_places
from stages.reporting.evidence import BlockResult, Evidence
from tests.reporting.example import example_params


def result(index: int, share: float, low: float, high: float) -> BlockResult:
    """Return a present block with an interval."""
    numbers = {"share": share, "share_low": low, "share_high": high}
    return BlockResult(BlockId("single", index), present=True, kept=False, numbers=numbers)


def test_a_rank_is_possible_unless_whole_intervals_forbid_it() -> None:
    """The first stands alone; the next two overlap; the last touches the third."""
    ranked = [
        result(0, 0.5, 0.45, 0.55),
        result(1, 0.2, 0.15, 0.25),
        result(2, 0.18, 0.1, 0.22),
        result(3, 0.08, 0.06, 0.1),
    ]
    places = possible_places(ranked)
    assert places == [Places(1, 1), Places(2, 3), Places(2, 4), Places(3, 4)]
    assert [str(place) for place in places] == ["1", "2 to 3", "2 to 4", "3 to 4"]


@pytest.mark.parametrize("overlapping", [False, True])
def test_the_sentences_say_who_may_change_places(evidence: Evidence, overlapping: bool) -> None:
    """Rivals from behind are named; where there are none, that is said."""
    wide = 0.2 if overlapping else 0.001
    blocks = tuple(
        result(index, share, share - wide, share + wide)
        for index, share in enumerate([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05])
    )
    told = answer(type(evidence)(**{**vars(evidence), "blocks": blocks}), example_params())
    assert [leader.block for leader in told.leaders] == [f"single.{index}" for index in range(5)]
    assert told.together == pytest.approx(0.87)
    assert told.evenly == pytest.approx(5 / 7)
    first, others = told.certainty
    if overlapping:
        assert first.startswith("Seven blocks could be first: their 90")
        assert others == (
            "None of these 5 is certain to be in the top 5; "
            "they could change places with single.5, single.6."
        )
    else:
        assert first.startswith("single.0 is first")
        assert others.startswith("These 5 are the top 5")


@pytest.mark.parametrize(
    ("wide", "words"),
    [
        (4, "Only 1 of these 5 is certain to be in the top 5; the others could change places"),
        (3, "Only 2 of these 5 are certain to be in the top 5; the others could change places"),
    ],
)
def test_the_sentence_counts_in_good_english(evidence: Evidence, wide: int, words: str) -> None:
    """One is certain, two are; the blocks behind them reach all the others."""
    shares = [0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05]
    reach = [0.001] * (5 - wide) + [0.2] * (wide + 2)
    sure = [
        share + (2.0 if half < 0.01 else 0.0) for share, half in zip(shares, reach, strict=True)
    ]
    blocks = tuple(
        result(index, share, share - half, share + half)
        for index, (share, half) in enumerate(zip(sure, reach, strict=True))
    )
    told = answer(type(evidence)(**{**vars(evidence), "blocks": blocks}), example_params())
    assert told.certainty[1].startswith(words)


def test_what_was_lost_is_told_with_its_doubt(evidence: Evidence) -> None:
    """1 - recovery, and its far end, on so many pictures."""
    told = answer(evidence, example_params())
    assert told.lost.replace("\N{NO-BREAK SPACE}", " ") == "9 %"
    words = told.lost_words.replace("\N{NO-BREAK SPACE}", " ")
    assert "4 pictures of 2 prompts" in words
    assert "12 % at the far end of the 95 % interval" in words
