"""How the base model's two tokenizers spell a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import CLIPTokenizer, T5TokenizerFast


@dataclass(frozen=True)
class Spelling:
    """A word as the tokenizers of CLIP and T5 take it apart, without their markers."""

    clip: tuple[str, ...]
    t5: tuple[str, ...]
    readable: bool  # neither tokenizer lacks a sign of it

    @property
    def is_one_token(self) -> bool:
        """Whether both know it whole: such a word already means something to the base model."""
        return len(self.clip) == 1 and len(self.t5) == 1 and self.readable


def spell(folder: Path, words: Sequence[str]) -> dict[str, Spelling]:
    """Return each word's spelling.

    Args:
        folder: the base model's diffusers folder.
        words: one or more, none with white space.
    """
    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
    return {
        word: Spelling(
            tuple(clip.tokenize(word)),
            tuple(t5.tokenize(word)),
            # CLIP falls back to bytes and reads everything.
            t5.unk_token_id not in t5(word, add_special_tokens=False).input_ids,
        )
        for word in words
    }
