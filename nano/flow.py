"""Flow matching as FLUX.1 does it: x_t = (1 - sigma) z + sigma noise, velocity = noise - z."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from nano.architecture import CLIP_TOKENS, TEXT_TOKENS
from nano.drawing import CENTRES, RADII
from nano.vocabulary import COMMON_WORDS, build_clip_tokenizer, build_t5_tokenizer
from nano.world import Scene

TOKENS_PER_SIDE: Final = 8  # 128 pixels / (8 of the autoencoder x 2 of the packing)
_CLIP_TRAINING_TOKENS: Final = 32  # causal: what follows the end token does not change the result
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_CONSONANTS: Final = "bcdfghjklmnpqrstvwxz"
_VOWELS: Final = "aeiouy"


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) to (batch, height / 2 * width / 2, 4 * channels).

    Source: FluxPipeline._pack_latents of diffusers.
    """
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def image_ids(side: int = TOKENS_PER_SIDE) -> torch.Tensor:
    """(side * side, 3): zero, row and column of each image token, as FluxPipeline makes them."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def text_ids() -> torch.Tensor:
    """(text tokens, 3): all zero, as FluxPipeline makes them."""
    return torch.zeros(TEXT_TOKENS, 3)


class TextEncoders(nn.Module):
    """CLIP's pooled embedding and T5's sequence, tokenised as FluxPipeline does."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
        super().__init__()
        self.clip = clip
        self.t5 = t5
        self.clip_tokenizer = build_clip_tokenizer()
        self.t5_tokenizer = build_t5_tokenizer()

    def forward(
        self, captions: list[str], clip_tokens: int = _CLIP_TRAINING_TOKENS
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled (batch, width) and sequence (batch, 32, width)."""
        assert clip_tokens <= CLIP_TOKENS
        clip_ids = self.clip_tokenizer(
            captions,
            padding="max_length",
            max_length=clip_tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        t5_ids = self.t5_tokenizer(
            captions,
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids)[0]


def nonsense_word(random: np.random.Generator) -> str:
    """Two to five letters that are no word of the world, pronounceable half of the time."""
    length = int(random.integers(2, 6))
    letters = (
        [_LETTERS] * length
        if random.random() < 0.5
        else [_CONSONANTS if place % 2 == 0 else _VOWELS for place in range(length)]
    )
    return "".join(str(random.choice(list(choices))) for choices in letters)


def training_caption(
    scene: Scene, empty_share: float, nonsense_share: float, random: np.random.Generator
) -> str:
    """The scene's sentence; sometimes empty, sometimes after a word that means nothing here."""
    draw = random.random()
    if draw < empty_share:
        return ""
    if draw < empty_share + nonsense_share:
        foreign = random.random() < 0.5
        word = str(random.choice(COMMON_WORDS)) if foreign else nonsense_word(random)
        return f"{word}, {scene.caption}"
    return scene.caption


def object_weights(scenes: list[Scene], weight: float) -> torch.Tensor:
    """(scenes, 64, 1): `weight` for image tokens that show the object, 1 for others; mean 1 each.

    A token counts where its centre is within the object's radius, jitter and half a token.
    """
    centres = (torch.arange(TOKENS_PER_SIDE) + 0.5) / TOKENS_PER_SIDE
    weights = torch.ones(len(scenes), TOKENS_PER_SIDE, TOKENS_PER_SIDE)
    for place, scene in enumerate(scenes):
        x, y = CENTRES[scene.position]
        reach = RADII[scene.size] * 1.04 + 0.02 + 0.5 / TOKENS_PER_SIDE
        inside = ((centres - y).abs() < reach)[:, None] & ((centres - x).abs() < reach)[None, :]
        weights[place][inside] = weight
    weights = weights / weights.mean((1, 2), keepdim=True)
    return weights.reshape(len(scenes), -1, 1)


@dataclass(frozen=True)
class Batch:
    """Noised latents and what the model is to say about them."""

    scenes: list[Scene]
    captions: list[str]
    noised: torch.Tensor  # (batch, 64, 32)
    sigmas: torch.Tensor  # (batch,) in 0..1
    velocity: torch.Tensor  # (batch, 64, 32): noise - latents
    weights: torch.Tensor  # (batch, 64, 1)


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn."""

    batch_size: int
    empty_share: float  # of the captions
    nonsense_share: float  # of the captions begin with a word that means nothing
    sigma_shift: float  # sigma = sigmoid(shift + normal): more than 0 is mostly high noise
    object_weight: float  # of tokens that show the object, against 1


def sample_batch(
    latents: np.ndarray, scenes: list[Scene], sampling: Sampling, seed: int, step: int
) -> Batch:
    """The batch of a step: the same for the same seed and step."""
    random = np.random.default_rng((seed, step))
    chosen = random.integers(0, len(scenes), sampling.batch_size)
    picked = [scenes[index] for index in chosen]
    clean = pack(torch.from_numpy(latents[chosen].astype(np.float32)))
    noise = torch.from_numpy(random.standard_normal(clean.shape, dtype=np.float32))
    normal = random.standard_normal(sampling.batch_size, dtype=np.float32)
    sigmas = torch.sigmoid(sampling.sigma_shift + torch.from_numpy(normal))
    level = sigmas[:, None, None]
    captions = [
        training_caption(scene, sampling.empty_share, sampling.nonsense_share, random)
        for scene in picked
    ]
    return Batch(
        scenes=picked,
        captions=captions,
        noised=(1 - level) * clean + level * noise,
        sigmas=sigmas,
        velocity=noise - clean,
        weights=object_weights(picked, sampling.object_weight),
    )
