"""A running average of a model's weights, which draws better than the last weights do."""

import copy
from typing import Generic, TypeVar

import torch

Model = TypeVar("Model", bound=torch.nn.Module)


class WeightAverage(Generic[Model]):
    """An exponential moving average of `model`'s weights; the model itself is not changed.

    The decay grows from 0 towards its final value as (1 + updates) / (10 + updates), so that the
    random weights of the start are soon forgotten.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Moves the average a step towards the weights of `model`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[torch.Tensor] = list(self.model.parameters())
        weights: list[torch.Tensor] = list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
        self.updates += 1
