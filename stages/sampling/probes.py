"""Noised pictures at which velocities are compared, without making a picture per question.

A probe is x_t = (1 - sigma) z + sigma eps, where z are the latents of the picture that the whole
LoRA makes of a prompt and a seed, and eps is a draw of its own: the states at which the LoRA was
trained and at which it is used. Every set of blocks is compared on the same probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from stages.contracts.params import SamplingParams
from stages.families.flow import predict_velocity
from stages.families.noise import keyed_normal
from stages.families.text import TextBatch, batch_text
from stages.sampling.generation import Generator, Job, generate_latents

GatedVelocity: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From indices of probes [B] and their gates [B, blocks(, streams)] to velocities [B, N, 4C]."""


@dataclass(frozen=True)
class Probes:
    """Noised tokens [S, N, 4C], their noise levels [S] and prompts, on the model's device."""

    packed: torch.Tensor
    sigmas: torch.Tensor
    text: TextBatch

    def __len__(self) -> int:
        """Return the number of probes."""
        return len(self.packed)


def make_probes(
    generator: Generator,
    pictures: Sequence[tuple[str, int]],
    sigmas: Sequence[float],
    sampling: SamplingParams,
) -> Probes:
    """Return one probe per picture and noise level; the noise level varies fastest.

    Args:
        generator: with the gates of the adapter; the pictures are made with all of them at 1.
        pictures: names of prompts, each with a seed.
        sigmas: noise levels in (0, 1).
        sampling: how the pictures are made.
    """
    jobs = [Job(prompt, seed, _all_on(generator)) for prompt, seed in pictures]
    batch = min(sampling.batch, len(jobs))  # no padding: nobody looks at these pictures
    unpadded = sampling.model_copy(update={"batch": batch})
    finished = torch.cat(
        [
            generate_latents(generator, jobs[start : start + batch], unpadded)
            for start in range(0, len(jobs), batch)
        ]
    )
    packed = [
        (1.0 - sigma) * latents + sigma * _noise(latents, prompt, seed, sigma)
        for (prompt, seed), latents in zip(pictures, finished.float(), strict=True)
        for sigma in sigmas
    ]
    text = batch_text([generator.texts[prompt] for prompt, _ in pictures for _ in sigmas])
    transformer = generator.transformer
    return Probes(
        torch.stack(packed),
        torch.tensor(list(sigmas) * len(pictures), device=transformer.device),
        text.to(transformer.device, transformer.dtype),
    )


def probe_velocity(generator: Generator, probes: Probes, guidance: float) -> GatedVelocity:
    """Return the model's velocity as a function of probes and gates.

    Gradients flow to the gates, where they are asked for.

    Raises:
        ValueError: the generator has no gates.
    """
    gates = generator.gates
    if gates is None:
        raise ValueError("the generator has no gates")

    def velocity(indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        text = TextBatch(probes.text.tokens[indices], probes.text.pooled[indices])
        gates.set(values.to(probes.packed.device), text_tokens=text.tokens.shape[1])
        return predict_velocity(
            generator.transformer, probes.packed[indices], probes.sigmas[indices], text, guidance
        )

    return velocity


def _all_on(generator: Generator) -> tuple[float, ...]:
    if generator.gates is None:
        raise ValueError("the generator has no gates")
    return (1.0,) * len(generator.gates.blocks)


def _noise(latents: torch.Tensor, prompt: str, seed: int, sigma: float) -> torch.Tensor:
    return keyed_normal(latents.shape, "probe", prompt, seed, str(sigma)).to(latents.device)
