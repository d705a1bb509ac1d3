"""Stages `refine` and `polish`: train the autoencoder on, for thin lines and small details.

Crops are taken around the objects, also of made-up figures, and convolutions are trained with
Muon. An anchor keeps the latents close to what they were, so that the transformer, which meanwhile
learns the latents of the start, fits the result.

Reads the drawings and an autoencoder with its factors; writes an autoencoder with the same factors.
Parameters: section `refine` or `polish`; `polish` goes on beside the deep transformer.
"""

import argparse
import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from nano.autoencoder import mean_square_error, reconstruct, reconstruction_loss
from nano.averaging import WeightAverage
from nano.checkpoint import Checkpoint
from nano.optimization import MuonAndAdamW
from nano.parameters import load_section
from nano.schedule import constant_then_linear

logger = logging.getLogger(__name__)

_LATENT_GRID_PX = 8
_BLOCK_PREFIXES = (
    "encoder.down_blocks.",
    "encoder.mid_block.",
    "decoder.up_blocks.",
    "decoder.mid_block.",
)


@dataclass(frozen=True)
class RefineParameters:
    """How the autoencoder is trained on."""

    seed: int
    steps: int
    batch_size: int
    crop_px: int  # crops are aligned to the latent grid
    figure_share: float  # of each batch
    scribble_share: float  # of each batch
    recoloured_share: float  # of the batches, with permuted or scaled colours
    learning_rate: float
    last_learning_rate_share: float
    constant_share: float
    warm_up_steps: int
    gradient_weight: float  # of the L1 loss of neighbouring pixels' differences
    anchor_weight: float  # of the squared change of latents, in their standard deviations
    ema_decay: float
    checkpoint_seconds: float
    validate_every: int


def _recoloured(batch: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """The batch (pictures, 3, height, width) with permuted channels and a smaller range."""
    gain = torch.from_numpy(random.uniform(0.5, 1.0, (1, 3, 1, 1))).float()
    shift = torch.from_numpy(random.uniform(-1, 1, (1, 3, 1, 1))).float() * (1 - gain)
    return batch[:, random.permutation(3).tolist()] * gain + shift


def crop_batch(
    sources: dict[str, np.ndarray], parameters: RefineParameters, step: int
) -> torch.Tensor:
    """Crops, mostly of the middle, float32 (batch, 3, crop, crop) in -1..1, keyed by the step."""
    random = np.random.default_rng((parameters.seed, step))
    figures = round(parameters.batch_size * parameters.figure_share)
    scribbled = round(parameters.batch_size * parameters.scribble_share)
    names = ["figures"] * figures + ["scribbles"] * scribbled
    names += ["training"] * (parameters.batch_size - len(names))
    crops = []
    for name in names:
        picture = sources[name][random.integers(len(sources[name]))]
        cells = (picture.shape[0] - parameters.crop_px) // _LATENT_GRID_PX
        places = random.triangular(-0.25, 0.5, 1.25, 2).clip(0, 1)
        top, left = np.rint(places * cells).astype(int) * _LATENT_GRID_PX
        crops.append(picture[top : top + parameters.crop_px, left : left + parameters.crop_px])
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if random.random() < parameters.recoloured_share:
        batch = _recoloured(batch, random)
    return batch.contiguous(memory_format=torch.channels_last)


class _AnchoredLoss:
    """Reconstruction, and the change of the latents against those of the start."""

    def __init__(self, model: AutoencoderKL, parameters: RefineParameters) -> None:
        self._parameters = parameters
        self._anchor = copy.deepcopy(model.encoder).requires_grad_(False)

    def __call__(self, model: AutoencoderKL, batch: torch.Tensor) -> torch.Tensor:
        """The loss of a batch of crops (batch, 3, crop, crop) in -1..1."""
        channels = model.config["latent_channels"]
        latents: torch.Tensor = model.encoder(batch)[:, :channels]
        with torch.no_grad():
            before: torch.Tensor = self._anchor(batch)[:, :channels]
        change = functional.mse_loss(latents, before) / before.var()
        output = model.decode(latents).sample
        reconstruction = reconstruction_loss(output, batch, self._parameters.gradient_weight)
        return reconstruction + self._parameters.anchor_weight * change


def refine(
    parameters: RefineParameters, drawings: Path, start: Path, out: Path, state_file: Path
) -> None:
    """Trains the autoencoder at `start` on and writes it at `out`."""
    names = ("training", "figures", "scribbles")
    sources = {name: np.load(drawings / f"{name}.npy", mmap_mode="r") for name in names}
    held_out = np.array(np.load(drawings / "held_out.npy", mmap_mode="r")[:48])
    model = AutoencoderKL.from_pretrained(start).to(memory_format=torch.channels_last)
    loss_of = _AnchoredLoss(model, parameters)
    optimizer = MuonAndAdamW(model, _BLOCK_PREFIXES, parameters.learning_rate)
    average = WeightAverage(model, parameters.ema_decay)
    checkpoint = Checkpoint(state_file, parameters.checkpoint_seconds)
    first_step = 0
    if (state := checkpoint.load()) is not None:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        average.updates = first_step = state["step"]
    for step in range(first_step, parameters.steps):
        loss = loss_of(model, crop_batch(sources, parameters, step))
        torch.autograd.backward(loss)
        factor = constant_then_linear(
            step, parameters.steps, parameters.constant_share, parameters.last_learning_rate_share
        )
        optimizer.step(factor * min(1.0, (step + 1) / parameters.warm_up_steps))
        average.update(model)
        done = step + 1
        if done % parameters.validate_every == 0 or done == parameters.steps:
            error = mean_square_error(held_out, reconstruct(average.model, held_out))
            logger.info("step %d: loss %.4f, held-out MSE %.1f", done, loss.item(), error)
        if checkpoint.due() or done == parameters.steps:
            checkpoint.save(
                {
                    "step": done,
                    "model": model.state_dict(),
                    "average": average.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
    average.model.save_pretrained(out)
    checkpoint.clear()


def main() -> None:
    """Command line of the stages `refine` and `polish`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--section", choices=("refine", "polish"), required=True)
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    parameters = load_section(arguments.params, arguments.section, RefineParameters)
    refine(parameters, arguments.drawings, arguments.start, arguments.out, arguments.state)


if __name__ == "__main__":
    main()
