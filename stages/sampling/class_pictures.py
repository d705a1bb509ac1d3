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
from stages.families.loading import load_transformer
from stages.sampling.generation import Job, generate, make_generator
from stages.sampling.prompts import NamedPrompt, embed_prompts

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
    named = [NamedPrompt(str(place), text) for place, text in enumerate(prompts)]
    texts = embed_prompts(folder, named, model, device)
    transformer = load_transformer(folder, model.precision, device)
    generator = make_generator(folder, transformer, texts, sampling)
    jobs = [Job(str(picture.prompt), picture.seed) for picture in wanted]
    for _, pixels in generate(generator, jobs, sampling):
        yield pixels
