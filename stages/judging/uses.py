"""Which pictures a step was made of, and at which noise levels: told again after the run.

Every draw is keyed (batches.py), so this is a function of the data and the params alone: it needs
no record, and it is the same for a run that was resumed or ran on several GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stages.contracts.params import TrainParams
from stages.encoding.encoded import Encoded
from stages.training.batches import picture_of, sample_weight, step_samples, step_sigmas
from stages.training.noise_levels import loss_weights


@dataclass(frozen=True)
class Use:
    """A picture's name, the noise level in (0, 1) that a step trained it at, and its weight."""

    picture: str
    sigma: float
    weight: float = 1.0


def uses_of_step(data: Encoded, params: TrainParams, step: int) -> tuple[Use, ...]:
    """Return what the step (the first is 1) was made of, in all processes together."""
    samples = step_samples(data, params, step)
    sigmas = step_sigmas(data, params, samples)
    weights = loss_weights(torch.tensor(sigmas), params).tolist()
    return tuple(
        Use(picture_of(data, sample).name, sigma, sample_weight(params, sample) * weight)
        for sample, sigma, weight in zip(samples, sigmas, weights, strict=True)
    )
