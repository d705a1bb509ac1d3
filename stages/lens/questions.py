"""What is asked about the velocity at a few probes, wherever the model is.

A question names its probes and a function of the velocity there. It can be pickled, and holds all
that its function needs, so that any process with the model can answer it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch

Velocity: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From indices of probes [B] and their gates [B, blocks] to their velocities [B, ...].

Gates may have a third axis, for what of a block's work they scale.
"""

Question: TypeAlias = tuple[torch.Tensor, Callable[[Velocity], torch.Tensor]]
"""Indices [B] of probes, and what is asked: a velocity there counts the probes from 0 to B - 1."""

Ask: TypeAlias = Callable[[Iterable[Question]], Iterator[torch.Tensor]]
"""From questions to their answers, on the CPU, in the same order."""


def ask_here(velocity: Velocity) -> Ask:
    """Return who answers in this process, from the velocity of all probes."""

    def of(indices: torch.Tensor) -> Velocity:
        return lambda rows, gates: velocity(indices[rows], gates)

    def ask(questions: Iterable[Question]) -> Iterator[torch.Tensor]:
        for indices, question in questions:
            yield question(of(indices))

    return ask
