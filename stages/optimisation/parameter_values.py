"""Other weights on a model for a while, its own put back to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


@torch.no_grad()
def put_weights(
    parameters: Mapping[str, nn.Parameter], weights: Mapping[str, torch.Tensor]
) -> None:
    """Give every parameter the value that `weights` has under its name."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


@contextmanager
def weights_kept(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let the body change the parameters; afterwards they are what they were."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        put_weights(parameters, before)
