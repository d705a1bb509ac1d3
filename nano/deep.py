"""Stages `deep`, `finish` and `settle`: grow the shallow model to FLUX.1's blocks and train it on.

Guidance is distilled in the same run. A part of each batch is told guidance 1 and learns the plain
velocity; the rest is told a guidance g from 1 to the largest and learns
velocity + (g - 1) (u(caption) - u(empty)), where u is the shallow model, frozen: on average that is
classifier-free guidance (arXiv 2207.12598; distilled as in arXiv 2210.03142) in one pass. Above a
sigma, where the shallow model still mixes up colours, guidance is left out (arXiv 2404.07724).

Reads the latents, the captions and the shallow model with its text encoders; writes `grown/`, the
model before its first step, and `transformer/`, `clip/` and `t5/`, the running averages. Stage
`finish` starts from the output of `deep` and trains the text encoders along; `settle` starts from
that of `finish`. Parameters: section `deep`, `finish` or `settle`.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from nano.architecture import build_transformer
from nano.averaging import WeightAverage
from nano.checkpoint import Checkpoint
from nano.export import DOUBLE_BLOCKS, SINGLE_BLOCKS
from nano.flow import Batch, Sampling, TextEncoders, image_ids, sample_batch, text_ids
from nano.growing import grow
from nano.judge import read_scenes
from nano.optimization import MuonAndAdamW
from nano.parameters import load_section
from nano.schedule import constant_then_linear
from nano.shallow import save_models, weighted_error

logger = logging.getLogger(__name__)

BLOCK_PREFIXES = (
    "transformer.transformer_blocks.",
    "transformer.single_transformer_blocks.",
    "text.clip.encoder.layers.",
    "text.clip.text_model.encoder.layers.",
    "text.t5.encoder.block.",
)


@dataclass(frozen=True)
class DeepParameters:
    """How the deep model is grown and trained."""

    seed: int
    steps: int
    batch_size: int
    guided_samples: int  # of each batch; the others are told guidance 1
    largest_guidance: float
    largest_guided_sigma: float
    train_text: bool  # whether the text encoders learn, too
    empty_share: float
    nonsense_share: float
    sigma_shift: float
    object_weight: float
    learning_rate: float
    last_learning_rate_share: float
    constant_share: float
    warm_up_steps: int
    ema_decay: float
    compile: bool
    checkpoint_seconds: float

    @property
    def sampling(self) -> Sampling:
        """How its batches are drawn."""
        return Sampling(
            self.batch_size,
            self.empty_share,
            self.nonsense_share,
            self.sigma_shift,
            self.object_weight,
        )


class GuidedTarget:
    """What the deep model is to say: the velocity, moved by the shallow model's guidance."""

    def __init__(
        self, teacher: FluxTransformer2DModel, text: TextEncoders, parameters: DeepParameters
    ) -> None:
        self._parameters = parameters
        teacher.requires_grad_(False).eval()
        self._text = text.requires_grad_(False).eval()
        self._teacher = torch.compile(teacher) if parameters.compile else teacher
        self._ids = {"img_ids": image_ids(), "txt_ids": text_ids()}
        with torch.no_grad():
            self._empty_pooled, self._empty_sequence = text([""])

    def guidances(self, step: int) -> torch.Tensor:
        """(batch,): a guidance per sample, the first ones random and the others 1."""
        random = np.random.default_rng((self._parameters.seed, 1, step))
        guidances = np.ones(self._parameters.batch_size, np.float32)
        count = self._parameters.guided_samples
        guidances[:count] = random.uniform(1, self._parameters.largest_guidance, count)
        return torch.from_numpy(guidances)

    @torch.no_grad()
    def __call__(self, batch: Batch, guidances: torch.Tensor) -> torch.Tensor:
        """(batch, 64, 32): the velocities to learn."""
        count = self._parameters.guided_samples
        pooled, sequence = self._text(batch.captions[:count])
        told, untold = self._teacher(
            hidden_states=batch.noised[:count].repeat(2, 1, 1),
            encoder_hidden_states=torch.cat([sequence, self._empty_sequence.expand(count, -1, -1)]),
            pooled_projections=torch.cat([pooled, self._empty_pooled.expand(count, -1)]),
            timestep=batch.sigmas[:count].repeat(2),
            guidance=torch.ones(2 * count),
            return_dict=False,
            **self._ids,
        )[0].chunk(2)
        guided = batch.sigmas[:count] <= self._parameters.largest_guided_sigma
        strength = ((guidances[:count] - 1) * guided)[:, None, None]
        target = batch.velocity.clone()
        target[:count] += strength * (told - untold)
        return target


def load_text_encoders(shallow: Path) -> TextEncoders:
    """The text encoders in a folder."""
    return TextEncoders(
        CLIPTextModel.from_pretrained(shallow / "clip"),
        T5EncoderModel.from_pretrained(shallow / "t5"),
    )


def grow_from(
    shallow: FluxTransformer2DModel, parameters: DeepParameters
) -> FluxTransformer2DModel:
    """The shallow model with FLUX.1's number of blocks."""
    torch.manual_seed(parameters.seed)
    deep = build_transformer(DOUBLE_BLOCKS, SINGLE_BLOCKS)
    grow(shallow, deep, torch.Generator().manual_seed(parameters.seed))
    return deep


def train_deep(
    parameters: DeepParameters,
    latents_file: Path,
    captions: Path,
    shallow_folder: Path,
    start: Path | None,
    out: Path,
    state_file: Path,
) -> None:
    """Grows, trains and writes the deep model."""
    latents, scenes = np.load(latents_file), read_scenes(captions)
    shallow = FluxTransformer2DModel.from_pretrained(shallow_folder / "transformer")
    if start is None:
        transformer = grow_from(shallow, parameters)
        transformer.save_pretrained(out / "grown")
        text = load_text_encoders(shallow_folder)
    else:
        transformer = FluxTransformer2DModel.from_pretrained(start / "transformer").train()
        text = load_text_encoders(start)
    text.requires_grad_(parameters.train_text)
    model = nn.ModuleDict({"transformer": transformer, "text": text})
    target_of = GuidedTarget(shallow, load_text_encoders(shallow_folder), parameters)
    optimizer = MuonAndAdamW(model, BLOCK_PREFIXES, parameters.learning_rate)
    average = WeightAverage(model, parameters.ema_decay)
    checkpoint = Checkpoint(state_file, parameters.checkpoint_seconds)
    first_step = 0
    if (state := checkpoint.load()) is not None:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        average.updates = first_step = state["step"]
    if parameters.compile:
        transformer.compile_repeated_blocks()
    ids = {"img_ids": image_ids(), "txt_ids": text_ids()}
    running = 0.0
    for step in range(first_step, parameters.steps):
        batch = sample_batch(latents, scenes, parameters.sampling, parameters.seed, step)
        guidances = target_of.guidances(step)
        target = target_of(batch, guidances)
        pooled, sequence = text(batch.captions)
        prediction = transformer(
            hidden_states=batch.noised,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            timestep=batch.sigmas,
            guidance=guidances,
            return_dict=False,
            **ids,
        )[0]
        loss = weighted_error(prediction, target, batch.weights)
        torch.autograd.backward(loss)
        factor = constant_then_linear(
            step, parameters.steps, parameters.constant_share, parameters.last_learning_rate_share
        )
        optimizer.step(factor * min(1.0, (step + 1) / parameters.warm_up_steps))
        average.update(model)
        running += (loss.item() - running) / min(step - first_step + 1, 100)
        if (step + 1) % 50 == 0:
            logger.info("step %d: loss %.4f", step + 1, running)
        if checkpoint.due() or step + 1 == parameters.steps:
            checkpoint.save(
                {
                    "step": step + 1,
                    "model": model.state_dict(),
                    "average": average.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
    save_models(average.model, out)
    checkpoint.clear()


def main() -> None:
    """Command line of the stages `deep`, `finish` and `settle`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--section", choices=("deep", "finish", "settle"), required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--shallow", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    parameters = load_section(arguments.params, arguments.section, DeepParameters)
    train_deep(
        parameters,
        arguments.latents,
        arguments.captions,
        arguments.shallow,
        arguments.start,
        arguments.out,
        arguments.state,
    )


if __name__ == "__main__":
    main()
