"""Prompts as the two embeddings that FLUX reads: T5 tokens and CLIP's pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxPipeline
from transformers import CLIPTokenizer, T5TokenizerFast


@dataclass(frozen=True)
class TextEmbedding:
    """One prompt: `tokens` [T, D] from T5 and `pooled` [P] from CLIP, float32 on the CPU."""

    tokens: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class TextBatch:
    """Several prompts: `tokens` [B, T, D] and `pooled` [B, P]."""

    tokens: torch.Tensor
    pooled: torch.Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> TextBatch:
        """Return the same prompts on `device` as `dtype`."""
        return TextBatch(self.tokens.to(device, dtype), self.pooled.to(device, dtype))


def batch_text(embeddings: Sequence[TextEmbedding]) -> TextBatch:
    """Return the prompts stacked in the given order."""
    return TextBatch(
        torch.stack([embedding.tokens for embedding in embeddings]),
        torch.stack([embedding.pooled for embedding in embeddings]),
    )


@torch.no_grad()
def encode_prompts(
    text_encoders: FluxPipeline, prompts: Sequence[str], text_tokens: int
) -> list[TextEmbedding]:
    """Return one embedding per prompt, each computed alone so that no prompt depends on others.

    Args:
        text_encoders: from `loading.load_text_encoders`.
        prompts: the empty prompt is allowed.
        text_tokens: T5 length that every prompt is padded or cut to.
    """
    embeddings = []
    for prompt in prompts:
        tokens, pooled, _ = text_encoders.encode_prompt(
            prompt=prompt, prompt_2=None, max_sequence_length=text_tokens
        )
        embeddings.append(TextEmbedding(tokens[0].float().cpu(), pooled[0].float().cpu()))
    return embeddings


def count_tokens(folder: Path, texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return (CLIP, T5) token counts of each text before any cut, end markers included.

    Args:
        folder: the base model's diffusers folder.
        texts: captions or prompts.
    """
    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
    return [(len(clip(text).input_ids), len(t5(text).input_ids)) for text in texts]
