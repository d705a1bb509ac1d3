"""How much of each caption the two text encoders read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from stages.families.text import count_tokens

_CLIP_TOKENS: Final = 77
"""CLIP's own length, where its tokenizer does not state another."""


@dataclass(frozen=True)
class TokenCount:
    """A text's tokens for one encoder, markers included, and how many of them it reads at most."""

    encoder: str
    tokens: int
    limit: int

    @property
    def cut(self) -> float:
        """Share of the tokens that the encoder does not read, 0-1."""
        return max(0, self.tokens - self.limit) / self.tokens


def measure_tokens(
    folder: Path, texts: Sequence[str], text_tokens: int
) -> list[tuple[TokenCount, TokenCount]]:
    """Return the counts of each text for CLIP and T5.

    Args:
        folder: the base model's diffusers folder.
        texts: captions.
        text_tokens: length that every prompt is cut to for T5.
    """
    clip_limit = _clip_limit(folder)
    return [
        (TokenCount("CLIP", clip, clip_limit), TokenCount("T5", t5, text_tokens))
        for clip, t5 in count_tokens(folder, texts)
    ]


def summarise_tokens(counts: Sequence[tuple[TokenCount, TokenCount]]) -> dict[str, int | float]:
    """Return what a pull request should show of the counts, by name; there is at least one."""
    summary: dict[str, int | float] = {
        "tokens_over_limit": sum(clip.cut > 0 or t5.cut > 0 for clip, t5 in counts)
    }
    for encoder, numbers in (
        ("clip", [clip.tokens for clip, _ in counts]),
        ("t5", [t5.tokens for _, t5 in counts]),
    ):
        summary[f"{encoder}_tokens_min"] = min(numbers)
        summary[f"{encoder}_tokens_median"] = median(numbers)
        summary[f"{encoder}_tokens_max"] = max(numbers)
    return summary


def _clip_limit(folder: Path) -> int:
    path = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    return int(settings.get("model_max_length", _CLIP_TOKENS))
