"""Noised pictures at which velocities are compared, without making a picture per question.

A probe is x_t = (1 - sigma) z + sigma eps, where z are the latents of the picture that the whole
LoRA makes of a prompt and a seed, and eps is a draw of its own: the states at which the LoRA was
trained and at which it is used. Every set of blocks is compared on the same probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from stages.contracts.params import SamplingParams
from stages.families.flow import predict_velocity
from stages.families.noise import keyed_normal
from stages.families.text import TextBatch, batch_text
from stages.runtime.crew import Crew, ordered
from stages.sampling.generation import Generator, Job
from stages.sampling.session import AS_TRAINED, Session, finish_latents

GatedVelocity: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From indices of probes [B] and their gates [B, blocks(, streams)] to velocities [B, N, 4C]."""
Question: TypeAlias = tuple[torch.Tensor, Callable[[GatedVelocity], torch.Tensor]]
"""Indices [B] of probes and a function of the velocity there; see lens/questions.py."""


@dataclass(frozen=True)
class Probes:
    """Noised tokens [S, N, 4C], float32, their noise levels [S] and their prompts by name."""

    packed: torch.Tensor
    sigmas: torch.Tensor
    prompts: tuple[str, ...]
    guidance: float

    def __len__(self) -> int:
        """Return the number of probes."""
        return len(self.packed)

    def at(self, indices: torch.Tensor) -> Probes:
        """Return the probes `indices` [B]."""
        prompts = tuple(self.prompts[index] for index in indices.tolist())
        return Probes(self.packed[indices], self.sigmas[indices], prompts, self.guidance)


def make_probes(
    crew: Crew[Session],
    blocks: int,
    pictures: Sequence[tuple[str, int]],
    sigmas: Sequence[float],
    sampling: SamplingParams,
) -> Probes:
    """Return one probe per picture and noise level; the noise level varies fastest.

    Args:
        crew: whose model has the adapter; the pictures are made with all gates at 1.
        blocks: of the adapter.
        pictures: names of prompts, each with a seed.
        sigmas: noise levels in (0, 1).
        sampling: how the pictures are made.
    """
    jobs = [Job(prompt, seed, (1.0,) * blocks) for prompt, seed in pictures]
    size = min(sampling.batch, len(jobs))  # no padding: nobody looks at these pictures
    batches = [(size, jobs[start : start + size]) for start in range(0, len(jobs), size)]
    finished = torch.cat(
        [torch.from_numpy(latents) for latents in ordered(crew, finish_latents, batches)]
    )
    packed = [
        (1.0 - sigma) * latents + sigma * keyed_normal(latents.shape, "probe", *shot, str(sigma))
        for shot, latents in zip(pictures, finished, strict=True)
        for sigma in sigmas
    ]
    prompts = tuple(prompt for prompt, _ in pictures for _ in sigmas)
    levels = torch.tensor(list(sigmas) * len(pictures))
    return Probes(torch.stack(packed), levels, prompts, sampling.guidance)


def ask_crew(
    crew: Crew[Session], probes: Probes
) -> Callable[[Iterable[Question]], Iterator[torch.Tensor]]:
    """Return who answers questions about the velocity at `probes`, in their order."""

    def ask(questions: Iterable[Question]) -> Iterator[torch.Tensor]:
        return ordered(
            crew, answer, ((probes.at(indices), question) for indices, question in questions)
        )

    return ask


def answer(
    session: Session, asked: tuple[Probes, Callable[[GatedVelocity], torch.Tensor]]
) -> torch.Tensor:
    """Return the answer to a question about the velocity at a few probes."""
    probes, question = asked
    return question(probe_velocity(session.generator_for(AS_TRAINED), probes))


def probe_velocity(generator: Generator, probes: Probes) -> GatedVelocity:
    """Return the model's velocity as a function of probes and gates.

    Gradients flow to the gates, where they are asked for.

    Raises:
        ValueError: the generator has no gates.
    """
    gates = generator.gates
    if gates is None:
        raise ValueError("the generator has no gates")
    transformer = generator.transformer
    device = transformer.device
    packed, sigmas = probes.packed.to(device), probes.sigmas.to(device)
    text = batch_text([generator.texts[prompt] for prompt in probes.prompts]).to(
        device, transformer.dtype
    )

    def velocity(indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        there = TextBatch(text.tokens[indices], text.pooled[indices])
        gates.set(values.to(device), text_tokens=there.tokens.shape[1])
        return predict_velocity(
            transformer, packed[indices], sigmas[indices], there, probes.guidance
        )

    return velocity
