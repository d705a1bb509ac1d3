"""Pictures from prompts, seeds and gates, in batches of one fixed size.

The sampler is FluxPipeline's: Euler steps on the flow's ordinary differential equation over the
scheduler's own noise levels (diffusers, FlowMatchEulerDiscreteScheduler.step), from the noise
that the pipeline draws for the same seed. A batch that is not full is padded, because matrix
products of another size round differently: a picture does not depend on how many were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from stages.contracts.params import SamplingParams
from stages.families.architecture import Architecture, read_architecture
from stages.families.flow import denoise, sampling_sigmas
from stages.families.latents import decode_pictures
from stages.families.loading import load_vae
from stages.families.noise import initial_noise
from stages.families.text import TextEmbedding, batch_text
from stages.sampling.gates import BlockGates


@dataclass(frozen=True)
class Job:
    """One picture: the name of its prompt, the seed of its noise, and a gate per block.

    Without gates the transformer runs as it is.
    """

    prompt: str
    seed: int
    gates: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Generator:
    """What makes pictures: the models, the noise levels [steps + 1] and the prompts by name.

    `gates` is needed for jobs that have gates.
    """

    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    architecture: Architecture
    sigmas: torch.Tensor
    texts: Mapping[str, TextEmbedding]
    gates: BlockGates | None = None


def make_generator(
    folder: Path,
    transformer: FluxTransformer2DModel,
    texts: Mapping[str, TextEmbedding],
    sampling: SamplingParams,
    gates: BlockGates | None = None,
) -> Generator:
    """Return a generator around a transformer that is loaded already; loads the VAE.

    Args:
        folder: the base model's diffusers folder.
        transformer: with or without an adapter.
        texts: embeddings by the names that jobs use.
        sampling: how a picture is made.
        gates: the open gates of the attached adapter, for jobs that have gates.
    """
    return Generator(
        transformer,
        load_vae(folder, transformer.device),
        read_architecture(folder),
        sampling_sigmas(folder, sampling.steps, sampling.size_px),
        texts,
        gates,
    )


def generate(
    generator: Generator, jobs: Sequence[Job], sampling: SamplingParams
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield (index of the job, RGB picture uint8 [H, W, 3]) in the order of `jobs`.

    Pictures are decoded one at a time, which bounds memory and keeps them independent.

    Raises:
        ValueError: a job has gates and the generator has none.
    """
    for start in range(0, len(jobs), sampling.batch):
        latents = generate_latents(generator, jobs[start : start + sampling.batch], sampling)
        for offset in range(len(latents)):
            one = latents[offset : offset + 1]
            yield start + offset, decode_pictures(generator.vae, one, sampling.size_px)[0]


@torch.no_grad()
def generate_latents(
    generator: Generator, jobs: Sequence[Job], sampling: SamplingParams
) -> torch.Tensor:
    """Return the finished tokens [len(jobs), N, 4C] of at most one batch of jobs.

    Raises:
        ValueError: there is no job, there are more than a batch, or a job has gates and the
            generator has none.
    """
    if not 1 <= len(jobs) <= sampling.batch:
        raise ValueError(f"expected 1 to {sampling.batch} jobs, got {len(jobs)}")
    padded = [*jobs, *[jobs[-1]] * (sampling.batch - len(jobs))]
    _set_gates(generator, padded)
    device, dtype = generator.transformer.device, generator.transformer.dtype
    noise = torch.cat(
        [initial_noise(generator.architecture, sampling.size_px, job.seed) for job in padded]
    )
    text = batch_text([generator.texts[job.prompt] for job in padded]).to(device, dtype)
    packed = noise.to(device, dtype)
    finished = denoise(generator.transformer, packed, generator.sigmas, text, sampling.guidance)
    return finished[: len(jobs)]


def _set_gates(generator: Generator, jobs: Sequence[Job]) -> None:
    rows = [job.gates for job in jobs if job.gates is not None]
    if not rows:
        return
    if generator.gates is None or len(rows) != len(jobs):
        raise ValueError("either all jobs of a batch have gates, and the generator too, or none")
    generator.gates.set(torch.tensor(rows, device=generator.transformer.device))
