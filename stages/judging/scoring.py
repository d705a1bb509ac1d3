"""What each checkpoint's pictures are like, beside its losses.

Every checkpoint draws the sample prompts, which hold the trigger, and the prompts without it, at
the same noise as the base model. Pictures are RGB uint8 [H, W, 3]; their distance is the mean
squared difference of 0-255 grey levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxTransformer2DModel
from torch.nn import functional

from stages.adapters.attach import ADAPTER_NAME, lora_layers
from stages.adapters.module import Adapter, plain_pairs
from stages.judging.candidates import Candidate

Image = npt.NDArray[np.uint8]

COPY_RATIO: Final = 1 / 3
"""Below this a picture is a copy: the line of arXiv 2310.02664 (sail-sg/DiffMemorize,
mem_ratio.py), which compares the L2 distance to the nearest training picture with that to the
second nearest."""

UNIFORM_BELOW: Final = 6.0
"""Standard deviation of grey levels of a picture that shows nothing; see prepare.uniform_below."""

ALIKE_BELOW: Final = 0.05
"""Pictures of different prompts that are a twentieth as far apart as the base model's: alike."""

_THUMBNAIL: Final = 16
"""Latents are compared at 16 x 16: the size of 128-pixel pictures, whatever the training size."""


@dataclass(frozen=True)
class Painter:
    """Draws with the adapter as it is on the model.

    `samples()` gives one picture per sample prompt, `plain()` one per prompt without the trigger;
    `encode` a picture's normalised latents [C, h, w], as training pictures have them.
    """

    samples: Callable[[], Iterable[Image]]
    plain: Callable[[], Iterable[Image]]
    encode: Callable[[Image], torch.Tensor]


@dataclass(frozen=True)
class Drawn:
    """The pictures of one checkpoint, or of the base model."""

    candidate: Candidate
    samples: Sequence[Image]
    plain: Sequence[Image]

    @property
    def all(self) -> Sequence[Image]:
        """All pictures, those with the trigger first."""
        return [*self.samples, *self.plain]


@dataclass(frozen=True)
class Score:
    """What was measured of one checkpoint's pictures; None where there was nothing to measure.

    effect_mse: mean distance from the base model's pictures, with the trigger.
    plain_mse: the same without the trigger; bleed: plain_mse / effect_mse.
    diversity: mean distance between pictures of different prompts, 1 is the base model's.
    detail: least standard deviation of grey levels in a picture.
    nearest_training: least distance of a sample to a training picture, in latents, 1 is the
        median distance between a training picture and the one nearest to it.
    collapsed: near-uniform, or all alike, where the base model's pictures are not.
    """

    candidate: Candidate
    effect_mse: float | None
    plain_mse: float | None
    bleed: float | None
    diversity: float | None
    detail: float | None
    nearest_training: float | None
    collapsed: bool


def put_adapter(transformer: FluxTransformer2DModel, adapter: Adapter | None) -> None:
    """Give the LoRA that the model carries the matrices of `adapter`; None makes it the base.

    The model's own scales stay: B takes up the difference to the adapter's. An adapter of a lower
    rank than the model's, of an earlier phase, is filled up with zeros.
    """
    pairs = plain_pairs(adapter) if adapter else {}
    with torch.no_grad():
        for module, layer in lora_layers(transformer).items():
            down, up = (each[ADAPTER_NAME].weight for each in (layer.lora_A, layer.lora_B))
            if adapter is None:
                up.zero_()
                continue
            pair = pairs[module]
            down[: pair.rank].copy_(pair.down)
            down[pair.rank :].zero_()
            up[:, : pair.rank].copy_(pair.up * (pair.scale / layer.scaling[ADAPTER_NAME]))
            up[:, pair.rank :].zero_()


class TrainingSet:
    """The training pictures as a yardstick of memorisation."""

    def __init__(self, latents: Sequence[torch.Tensor]) -> None:
        """Keep the pictures' latents [C, h, w] small, and the usual distance between them.

        `usual` is the median over pictures of the distance to the nearest other one; None for a
        single picture or a set of duplicates.
        """
        self._small = torch.stack([_thumbnail(one) for one in latents])
        apart = torch.cdist(self._small, self._small)
        apart.fill_diagonal_(torch.inf)
        usual = float(apart.min(dim=1).values.median())
        self.usual = usual if 0 < usual < float("inf") else None

    def nearest(self, latents: torch.Tensor) -> float | None:
        """Return the distance to the nearest training picture, in units of `usual`."""
        if self.usual is None:
            return None
        apart = torch.cdist(_thumbnail(latents)[None], self._small)
        return float(apart.min()) / self.usual


def score_pictures(
    drawn: Drawn, base: Drawn, training: TrainingSet, encode: Callable[[Image], torch.Tensor]
) -> Score:
    """Return the scores of one checkpoint's pictures.

    Args:
        drawn: the checkpoint's.
        base: the base model's, of the same prompts and noise.
        training: what it was trained on.
        encode: see Painter.
    """
    effect = _mean_distance(drawn.samples, base.samples)
    plain = _mean_distance(drawn.plain, base.plain)
    diversity = _diversity(drawn, base)
    detail, usual_detail = _detail(drawn.all), _detail(base.all)
    nearest = [training.nearest(encode(picture)) for picture in drawn.samples]
    near = [ratio for ratio in nearest if ratio is not None]
    uniform = (
        detail is not None and usual_detail is not None and detail < UNIFORM_BELOW <= usual_detail
    )
    return Score(
        candidate=drawn.candidate,
        effect_mse=effect,
        plain_mse=plain,
        bleed=plain / effect if plain is not None and effect else None,
        diversity=diversity,
        detail=detail,
        nearest_training=min(near, default=None),
        collapsed=uniform or (diversity is not None and diversity < ALIKE_BELOW),
    )


def score_notes(score: Score, validation_loss: float | None) -> list[str]:
    """Return a checkpoint's scores in lines; those not measured are left out."""
    numbers = (
        ("validation loss {:.4f}", validation_loss),
        ("effect with trigger {:.0f} MSE", score.effect_mse),
        ("without trigger {:.0f} MSE", score.plain_mse),
        ("bleed {:.2f}", score.bleed),
        ("diversity {:.2f} of the base's", score.diversity),
        ("nearest training picture {:.2f}", score.nearest_training),
    )
    lines = [words.format(value) for words, value in numbers if value is not None]
    return [*lines, "collapsed"] if score.collapsed else lines


def _thumbnail(latents: torch.Tensor) -> torch.Tensor:
    """Return latents of any size as one float32 vector, averaged to 16 x 16."""
    small = functional.adaptive_avg_pool2d(latents.float().cpu()[None], _THUMBNAIL)
    return small.flatten()


def _distance(a: Image, b: Image) -> float:
    return float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))


def _mean_distance(pictures: Sequence[Image], others: Sequence[Image]) -> float | None:
    distances = [_distance(a, b) for a, b in zip(pictures, others, strict=True)]
    return float(np.mean(distances)) if distances else None


def _diversity(drawn: Drawn, base: Drawn) -> float | None:
    apart, usual = (
        [_distance(a, b) for a, b in combinations(each.all, 2)] for each in (drawn, base)
    )
    return float(np.mean(apart) / np.mean(usual)) if usual and np.mean(usual) > 0 else None


def _detail(pictures: Sequence[Image]) -> float | None:
    return min((float(picture.mean(axis=2).std()) for picture in pictures), default=None)
