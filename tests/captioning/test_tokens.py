"""What the encoders cut off is measured with their own tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.captioning.tokens import TokenCount, measure_tokens, summarise_tokens


def test_share_cut_off(nano_flux: Path) -> None:
    """The markers count, as they do in the encoder."""
    (short, long) = measure_tokens(nano_flux, ["tok", "circle " * 99], 50)
    assert short == (TokenCount("CLIP", 4, 77), TokenCount("T5", 5, 50))
    assert [count.cut for count in short] == [0.0, 0.0]
    assert [count.tokens for count in long] == [101, 100]
    assert [count.cut for count in long] == pytest.approx([24 / 101, 0.5])


def test_summary() -> None:
    """A caption that both cut is one caption."""
    counts = [
        (TokenCount("CLIP", clip, 77), TokenCount("T5", t5, 32))
        for clip, t5 in ((4, 5), (77, 32), (78, 33), (80, 20))
    ]
    assert summarise_tokens(counts) == {
        "tokens_over_limit": 2,
        "clip_tokens_min": 4,
        "clip_tokens_median": 77.5,
        "clip_tokens_max": 80,
        "t5_tokens_min": 5,
        "t5_tokens_median": 26.0,
        "t5_tokens_max": 33,
    }
