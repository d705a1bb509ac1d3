"""Stages `shallow` and `practice`: train 5 double, 10 single blocks and the text encoders along.

Reads the latents and the captions of the training drawings; writes `transformer/`, `clip/` and
`t5/`, the running averages. Stage `practice` starts from those with its rate as high as before.
Parameters: section `shallow` or `practice`.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from nano.architecture import build_transformer
from nano.averaging import WeightAverage
from nano.checkpoint import Checkpoint
from nano.export import build_text_encoders
from nano.flow import Sampling, TextEncoders, image_ids, sample_batch, text_ids
from nano.judge import read_scenes
from nano.optimization import MuonAndAdamW
from nano.parameters import load_section
from nano.schedule import constant_then_linear

logger = logging.getLogger(__name__)

BLOCK_PREFIXES: Final = (
    "transformer.transformer_blocks.",
    "transformer.single_transformer_blocks.",
)


@dataclass(frozen=True)
class ShallowParameters:
    """How the shallow model is trained."""

    seed: int
    double_blocks: int
    single_blocks: int
    steps: int
    batch_size: int
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


def silence_outputs(transformer: FluxTransformer2DModel) -> None:
    """Sets modulation and output layers to zero, so that every block starts as the identity.

    Source: adaLN-Zero of DiT, arXiv 2212.09748, section 3.2.
    """
    for name, module in transformer.named_modules():
        modulation = ".norm" in name and name.endswith(".linear")
        if isinstance(module, nn.Linear) and (
            modulation or name in ("norm_out.linear", "proj_out")
        ):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def weighted_error(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The mean squared error with a weight per token."""
    return ((prediction - target).square() * weights).mean()


def build_shallow(parameters: ShallowParameters, start: Path | None) -> nn.ModuleDict:
    """The transformer and the text encoders: untrained, or as a stage before left them."""
    if start is not None:
        transformer = FluxTransformer2DModel.from_pretrained(start / "transformer")
        text = TextEncoders(
            CLIPTextModel.from_pretrained(start / "clip"),
            T5EncoderModel.from_pretrained(start / "t5"),
        )
        return nn.ModuleDict({"transformer": transformer.train(), "text": text.train()})
    torch.manual_seed(parameters.seed)
    transformer = build_transformer(parameters.double_blocks, parameters.single_blocks)
    silence_outputs(transformer)
    return nn.ModuleDict({"transformer": transformer, "text": TextEncoders(*build_text_encoders())})


def save_models(model: nn.ModuleDict, out: Path) -> None:
    """Writes `transformer/`, `clip/` and `t5/`."""
    text = model["text"]
    assert isinstance(text, TextEncoders)
    transformer: FluxTransformer2DModel = model["transformer"]
    transformer.save_pretrained(out / "transformer")
    text.clip.save_pretrained(out / "clip")
    text.t5.save_pretrained(out / "t5")


def train_shallow(
    parameters: ShallowParameters,
    latents_file: Path,
    captions: Path,
    start: Path | None,
    out: Path,
    state_file: Path,
) -> None:
    """Trains and writes the shallow model and the text encoders."""
    latents, scenes = np.load(latents_file), read_scenes(captions)
    model = build_shallow(parameters, start)
    transformer, text = model["transformer"], model["text"]
    optimizer = MuonAndAdamW(model, BLOCK_PREFIXES, parameters.learning_rate)
    average = WeightAverage(model, parameters.ema_decay)
    checkpoint = Checkpoint(state_file, parameters.checkpoint_seconds)
    first_step = 0
    if (state := checkpoint.load()) is not None:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        average.updates = first_step = state["step"]
    predict = torch.compile(transformer) if parameters.compile else transformer
    ids = {"img_ids": image_ids(), "txt_ids": text_ids()}
    no_guidance = torch.ones(parameters.batch_size)
    running = 0.0
    for step in range(first_step, parameters.steps):
        batch = sample_batch(latents, scenes, parameters.sampling, parameters.seed, step)
        pooled, sequence = text(batch.captions)
        prediction = predict(
            hidden_states=batch.noised,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            timestep=batch.sigmas,
            guidance=no_guidance,
            return_dict=False,
            **ids,
        )[0]
        loss = weighted_error(prediction, batch.velocity, batch.weights)
        torch.autograd.backward(loss)
        factor = constant_then_linear(
            step, parameters.steps, parameters.constant_share, parameters.last_learning_rate_share
        )
        optimizer.step(factor * min(1.0, (step + 1) / parameters.warm_up_steps))
        average.update(model)
        running += (loss.item() - running) / min(step - first_step + 1, 100)
        if (step + 1) % 100 == 0:
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
    """Command line of the stages `shallow` and `practice`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--section", choices=("shallow", "practice"), required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    parameters = load_section(arguments.params, arguments.section, ShallowParameters)
    train_shallow(
        parameters,
        arguments.latents,
        arguments.captions,
        arguments.start,
        arguments.out,
        arguments.state,
    )


if __name__ == "__main__":
    main()
