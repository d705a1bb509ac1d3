"""What the base model itself makes of prompts: the pictures that prior preservation keeps to.

N. Ruiz et al., "DreamBooth", arXiv 2208.12242, section 3.2: the fine-tuned model is also trained on
pictures of the class that the frozen model made, so that it goes on making them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from stages.contracts.params import ModelParams, SamplingParams
from stages.families.architecture import read_architecture
from stages.families.flow import denoise, sampling_sigmas
from stages.families.latents import decode_pictures
from stages.families.loading import load_text_encoders, load_transformer, load_vae
from stages.families.noise import initial_noise
from stages.families.text import batch_text, encode_prompts

_FIRST_SEED: Final = 1_000_000
"""Far from the seeds that people give: no picture of the lens is one that was trained on."""


@dataclass(frozen=True)
class ClassPicture:
    """One picture to be made: the place of its prompt, its number among those, its seed."""

    prompt: int
    number: int

    @property
    def name(self) -> str:
        """The picture's name, in tables and files."""
        return f"class-{self.prompt}-{self.number}"

    @property
    def seed(self) -> int:
        """The seed of its noise, the same for every prompt."""
        return _FIRST_SEED + self.number


def class_pictures(prompts: int, pictures: int) -> list[ClassPicture]:
    """Return `pictures` pictures of each of so many prompts."""
    return [ClassPicture(prompt, number) for prompt in range(prompts) for number in range(pictures)]


def draw_class_pictures(
    folder: Path,
    prompts: Sequence[str],
    wanted: Sequence[ClassPicture],
    model: ModelParams,
    sampling: SamplingParams,
    device: torch.device,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the base model's picture, uint8 [H, W, 3] RGB, of each of `wanted`, in order.

    Args:
        folder: the base model's diffusers folder.
        prompts: the class prompts.
        wanted: the pictures, from `class_pictures`.
        model: how the base model is run.
        sampling: how a picture is made.
        device: where it is made.
    """
    encoders = load_text_encoders(folder, model.precision, device)
    texts = encode_prompts(encoders, prompts, model.text_tokens)
    del encoders  # on a small card the transformer needs their memory
    transformer = load_transformer(folder, model, device)
    vae = load_vae(folder, device)
    architecture = read_architecture(folder)
    sigmas = sampling_sigmas(folder, sampling.steps, sampling.size_px)
    for start in range(0, len(wanted), sampling.batch):
        some = wanted[start : start + sampling.batch]
        # Full to the last: a matrix product of another size rounds differently.
        padded = [*some, *[some[-1]] * (sampling.batch - len(some))]
        noise = [initial_noise(architecture, sampling.size_px, one.seed) for one in padded]
        text = batch_text([texts[one.prompt] for one in padded])
        packed = denoise(
            transformer,
            torch.cat(noise).to(device, transformer.dtype),
            sigmas,
            text.to(device, transformer.dtype),
            sampling.guidance,
        )
        for place in range(len(some)):
            yield decode_pictures(vae, packed[place : place + 1], sampling.size_px)[0]
