"""Which picture is used when, and with which random draws.

Training is one endless list of samples that steps cut into batches: epoch after epoch, each a
random order of all uses of all pictures: one per picture, or as many as its repeats. Every draw is
keyed on (seed, stream, use, picture). So a sample's noise does not depend on the batch size, on
where a run was resumed, or on which other pictures there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.families.noise import keyed_generator, keyed_normal, keyed_uniform
from stages.families.text import TextEmbedding
from stages.training.encoded import Latents, Picture


@dataclass(frozen=True)
class Sample:
    """One use of a picture: how often it was used before, and its place in the training set.

    With repeats 1 the former is the epoch.
    """

    use: int
    picture: int


@dataclass(frozen=True)
class Draw:
    """The random part of one sample.

    `clean` and `noise` [C, h, w] float32, `sigma` the noise level in (0, 1), `text` the picture's
    caption or the empty one. `weight` is the sample's own in the loss of its step, `token_weights`
    [N] those of its tokens in its own loss, of mean 1; None where all tokens count alike.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    sigma: float
    text: TextEmbedding
    weight: float = 1.0
    token_weights: torch.Tensor | None = None


def samples_of_step(step: int, batch: int, repeats: Sequence[int], seed: int) -> tuple[Sample, ...]:
    """Return the samples of a step (the first is 1).

    Args:
        step: from 1 on.
        batch: samples per step.
        repeats: of each training picture, how often an epoch uses it; at least 1.
        seed: of the run.
    """
    uses = [(place, turn) for place, count in enumerate(repeats) for turn in range(count)]
    numbers = range((step - 1) * batch, step * batch)
    orders = {epoch: _order(seed, epoch, len(uses)) for epoch in {n // len(uses) for n in numbers}}
    samples = []
    for number in numbers:
        epoch, position = divmod(number, len(uses))
        place, turn = uses[orders[epoch][position]]
        samples.append(Sample(epoch * repeats[place] + turn, place))
    return tuple(samples)


def draw_sample(
    picture: Picture, empty: TextEmbedding, use: int, seed: int, *, timesteps: str, dropout: float
) -> Draw:
    """Return the draws of one use of `picture`.

    Args:
        picture: latents, caption embedding and name.
        empty: embedding of the empty caption.
        use: how often the picture was used before.
        seed: of the run.
        timesteps: `sigmoid` or `uniform`, see `_sigma`.
        dropout: probability of the empty caption in place of the picture's own.
    """
    key = (use, picture.name)
    shape = picture.latents.mean.shape
    dropped = keyed_uniform([1], seed, "caption dropout", *key).item() < dropout
    return Draw(
        clean=posterior_sample(picture.latents, keyed_normal(shape, seed, "posterior", *key)),
        noise=keyed_normal(shape, seed, "noise", *key),
        sigma=_sigma(timesteps, seed, *key),
        text=empty if dropped else picture.text,
    )


def posterior_sample(latents: Latents, normal: torch.Tensor) -> torch.Tensor:
    """Return z = mean + std * normal, a draw from the VAE's posterior (arXiv 1312.6114)."""
    return latents.mean + latents.std * normal


def _order(seed: int, epoch: int, uses: int) -> Sequence[int]:
    generator = keyed_generator(seed, "order", epoch)
    return [int(place) for place in torch.randperm(uses, generator=generator)]


def _sigma(timesteps: str, seed: int, use: int, name: str) -> float:
    """Return a noise level: sigmoid of a normal draw (arXiv 2403.03206, 3.1) or uniform.

    ai-toolkit and SimpleTuner train FLUX on the former, with location 0 and scale 1, unshifted.
    """
    if timesteps == "uniform":
        return keyed_uniform([1], seed, "timestep", use, name).item()
    return torch.sigmoid(keyed_normal([1], seed, "timestep", use, name)).item()
