"""Which picture is used when, and with which random draws.

Training is one endless list of samples that steps cut into batches: epoch after epoch, each a
random order of all uses of all pictures: one per picture, or as many as its repeats. Where there
are regularisation pictures, a fixed share of the list is theirs, evenly spread, with epochs of
their own: how many there are does not matter. Every draw is keyed on (seed, stream, use, picture).
So a sample's noise does not depend on the batch size, on where a run was resumed, or on which other
pictures there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import torch

from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded, Latents, Picture
from stages.families.noise import keyed_generator, keyed_normal, keyed_uniform
from stages.families.text import TextEmbedding
from stages.optimisation.schedule import pictures_per_step
from stages.training.noise_levels import NoiseLevels, draw_sigma

_EVEN: Final = 0.5
_TOKEN_PIXELS: Final = 4  # a token is a 2x2 patch of latent pixels


@dataclass(frozen=True)
class Sample:
    """One use of a picture: how often it was used before, and its place in its set.

    With repeats 1 the former is the epoch. The set is `training` or `regularisation`.
    """

    use: int
    picture: int
    regularisation: bool = False


@dataclass(frozen=True)
class Draw:
    """The random part of one sample.

    `clean` and `noise` [C, h, w] float32, `sigma` the noise level in (0, 1), `text` the picture's
    caption or the empty one. `weight` is the sample's own in the loss of its step, `token_weights`
    [N] those of its tokens in its own loss, of mean 1; None where all tokens count alike.
    `plain_text` is the caption without the trigger, where the base model's answer to it is to be
    kept.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    sigma: float
    text: TextEmbedding
    weight: float = 1.0
    token_weights: torch.Tensor | None = None
    plain_text: TextEmbedding | None = None


def draw_step(data: Encoded, params: TrainParams, samples: Sequence[Sample]) -> tuple[Draw, ...]:
    """Return the draws of some samples of a step, from `step_samples`, in order."""
    levels = NoiseLevels.from_params(params)
    draws = []
    for sample in samples:
        draw = draw_sample(
            picture_of(data, sample),
            data.empty,
            sample.use,
            params.seed,
            levels=levels,
            dropout=params.caption_dropout,
            mask_floor=params.mask_floor if params.masked_loss else None,
            preserved=params.output_preservation_share if params.output_preservation else 0.0,
        )
        draws.append(replace(draw, weight=sample_weight(params, sample)))
    return tuple(draws)


def step_samples(data: Encoded, params: TrainParams, step: int) -> tuple[Sample, ...]:
    """Return all samples of a step (the first is 1)."""
    return samples_of_step(
        step,
        pictures_per_step(params),
        [picture.repeats for picture in data.training],
        params.seed,
        regularisation=[picture.repeats for picture in data.regularisation],
        share=params.regularisation_share,
    )


def picture_of(data: Encoded, sample: Sample) -> Picture:
    """Return the picture that a sample is a use of."""
    pictures = data.regularisation if sample.regularisation else data.training
    return pictures[sample.picture]


def samples_of_step(
    step: int,
    batch: int,
    repeats: Sequence[int],
    seed: int,
    *,
    regularisation: Sequence[int] = (),
    share: float = 0.0,
) -> tuple[Sample, ...]:
    """Return the samples of a step (the first is 1).

    Sample n, from 0 on, is a regularisation one where floor((n + 1) share) is more than
    floor(n share): at one half every second one.

    Args:
        step: from 1 on.
        batch: samples per step.
        repeats: of each training picture, how often an epoch uses it; at least 1.
        seed: of the run.
        regularisation: the same of the regularisation pictures.
        share: of the samples that are theirs; without such pictures there are none.
    """
    # The number as it is written in params.yaml, not its nearest binary fraction.
    part = Fraction(repr(share)) if regularisation else Fraction(0)
    training = _Epochs(repeats, (seed, "order"))
    others = _Epochs(regularisation, (seed, "regularisation order"))
    samples = []
    for number in range((step - 1) * batch, step * batch):
        before, after = math.floor(number * part), math.floor((number + 1) * part)
        if after > before:
            use, place = others.at(before)
            samples.append(Sample(use, place, regularisation=True))
        else:
            samples.append(Sample(*training.at(number - before)))
    return tuple(samples)


class _Epochs:
    """An endless list of uses of pictures, epoch after epoch, each in an order of its own."""

    def __init__(self, repeats: Sequence[int], key: tuple[int | str, ...]) -> None:
        self._repeats = repeats
        self._uses = [(place, turn) for place, count in enumerate(repeats) for turn in range(count)]
        self._key = key
        self._orders: dict[int, Sequence[int]] = {}

    def at(self, number: int) -> tuple[int, int]:
        """Return how often the picture was used before, and its place."""
        epoch, position = divmod(number, len(self._uses))
        if epoch not in self._orders:
            self._orders[epoch] = _permutation(len(self._uses), *self._key, epoch)
        place, turn = self._uses[self._orders[epoch][position]]
        return epoch * self._repeats[place] + turn, place


def draw_sample(
    picture: Picture,
    empty: TextEmbedding,
    use: int,
    seed: int,
    *,
    levels: NoiseLevels,
    dropout: float,
    mask_floor: float | None = None,
    preserved: float = 0.0,
) -> Draw:
    """Return the draws of one use of `picture`.

    Args:
        picture: latents, caption embedding and name.
        empty: embedding of the empty caption.
        use: how often the picture was used before.
        seed: of the run.
        levels: what its noise level is drawn from.
        dropout: probability of the empty caption in place of the picture's own.
        mask_floor: weight of a wholly transparent token; None: masks do not count.
        preserved: probability that the answer to the caption without the trigger is to be kept.
    """
    key = (use, picture.name)
    latents = choose_latents(picture, use, seed)
    shape = latents.mean.shape
    dropped = keyed_uniform([1], seed, "caption dropout", *key).item() < dropout
    kept = preserved > 0 and keyed_uniform([1], seed, "preservation", *key).item() < preserved
    return Draw(
        clean=posterior_sample(latents, keyed_normal(shape, seed, "posterior", *key)),
        noise=keyed_normal(shape, seed, "noise", *key),
        sigma=_sigma(latents, levels, seed, *key),
        text=empty if dropped else picture.text,
        token_weights=token_weights(latents, mask_floor),
        plain_text=picture.plain_text if kept else None,
    )


def step_sigmas(data: Encoded, params: TrainParams, samples: Sequence[Sample]) -> tuple[float, ...]:
    """Return the noise levels that `draw_step` draws for some samples, without drawing noise."""
    levels = NoiseLevels.from_params(params)
    sigmas = []
    for sample in samples:
        picture = picture_of(data, sample)
        latents = choose_latents(picture, sample.use, params.seed)
        sigmas.append(_sigma(latents, levels, params.seed, sample.use, picture.name))
    return tuple(sigmas)


def sample_weight(params: TrainParams, sample: Sample) -> float:
    """Return a sample's own weight in the loss of its step."""
    return params.regularisation_weight if sample.regularisation else 1.0


def _sigma(latents: Latents, levels: NoiseLevels, seed: int, *key: int | str) -> float:
    tokens = math.prod(latents.mean.shape[1:]) // _TOKEN_PIXELS
    return draw_sigma(levels, tokens, seed, "timestep", *key)


def choose_latents(picture: Picture, use: int, seed: int) -> Latents:
    """Return the latents of one use: of which size, and mirrored or not.

    Uses come in rounds of as many as there are sizes; each round takes every size once, in a
    random order. Where there is a mirrored picture, each of the two has the same chance.
    """
    views = picture.views
    turn, place = divmod(use, len(views))
    if len(views) > 1:
        place = _permutation(len(views), seed, "size", turn, picture.name)[place]
    view = views[place]
    if view.mirrored is None:
        return view.latents
    mirrored = keyed_uniform([1], seed, "mirror", use, picture.name).item() < _EVEN
    return view.mirrored if mirrored else view.latents


def token_weights(latents: Latents, floor: float | None) -> torch.Tensor | None:
    """Return the weights [N] of a picture's tokens, of mean 1; None where all count alike.

    A token's weight rises from `floor`, where it is transparent, to 1, where it is opaque; then
    all are divided by their mean, so that the loss of a small subject is no smaller than that of a
    large one. ai-toolkit does the latter too (extensions_built_in/sd_trainer/SDTrainer.py);
    kohya's scripts do not (sd-scripts, library/custom_train_functions.py, apply_masked_loss).
    """
    if latents.mask is None or floor is None:
        return None
    weights = floor + (1 - floor) * latents.mask.flatten()
    return weights / weights.mean()


def posterior_sample(latents: Latents, normal: torch.Tensor) -> torch.Tensor:
    """Return z = mean + std * normal, a draw from the VAE's posterior (arXiv 1312.6114)."""
    return latents.mean + latents.std * normal


def _permutation(count: int, *key: int | str) -> Sequence[int]:
    return [int(place) for place in torch.randperm(count, generator=keyed_generator(*key))]
