"""An exponential moving average (EMA) of the weights, kept beside them and never in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from stages.optimisation.parameter_values import put_weights, weights_kept


class Average:
    """A moving average of `parameters`, which begins at what they are now.

    `weights` are its tensors, float32, by the parameters' names and on their device.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.weights = {name: value.detach().clone() for name, value in parameters.items()}
        self._parameters = parameters
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 1): average += (1 - decay) (weights - average).

        The decay rises to its value as (1 + step) / (10 + step), like that of diffusers' EMAModel
        (src/diffusers/training_utils.py): the average of a short run does not stay at its start.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        values: list[torch.Tensor] = list(self._parameters.values())
        torch._foreach_lerp_(list(self.weights.values()), values, 1 - decay)

    @torch.no_grad()
    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Go on from saved weights."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average on the parameters for as long as the context lasts."""
        with weights_kept(self._parameters):
            put_weights(self._parameters, self.weights)
            yield
