"""The prompts of the lens under the short names that tables and folders give them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.contracts.params import ModelParams, PromptsParams
from stages.families.loading import load_text_encoders
from stages.families.text import TextEmbedding, encode_prompts


@dataclass(frozen=True)
class NamedPrompt:
    """A prompt and its name: `develop-0`, `held-out-1`, `without-trigger-0`, `attribute-0`."""

    name: str
    text: str


@dataclass(frozen=True)
class NamedPrompts:
    """The three lists of params prompts, in their order."""

    develop: tuple[NamedPrompt, ...]
    held_out: tuple[NamedPrompt, ...]
    without_trigger: tuple[NamedPrompt, ...]


def name_prompts(params: PromptsParams) -> NamedPrompts:
    """Return the prompts of params.yaml with their names, numbered from 0 in each list."""
    return NamedPrompts(
        number_prompts("develop", params.develop),
        number_prompts("held-out", params.held_out),
        number_prompts("without-trigger", params.without_trigger),
    )


def number_prompts(group: str, texts: Collection[str]) -> tuple[NamedPrompt, ...]:
    """Return prompts named after their group, numbered from 0."""
    return tuple(NamedPrompt(f"{group}-{index}", text) for index, text in enumerate(texts))


def embed_prompts(
    folder: Path, prompts: Collection[NamedPrompt], model: ModelParams, device: torch.device
) -> dict[str, TextEmbedding]:
    """Return the embedding of each prompt by its name.

    The text encoders are loaded for this call alone: FLUX's T5 is larger than most GPUs' rest.
    """
    encoders = load_text_encoders(folder, model.precision, device)
    texts = [prompt.text for prompt in prompts]
    embeddings = encode_prompts(encoders, texts, model.text_tokens)
    return dict(zip((prompt.name for prompt in prompts), embeddings, strict=True))
