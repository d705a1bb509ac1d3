"""Stage `autoencoder`: trains the autoencoder on crops of drawings and scribbles.

Reads the drawings; writes a diffusers AutoencoderKL folder (the running average of the weights).
Parameters: section `autoencoder`. Stage `refine` trains it on.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from nano.architecture import build_autoencoder
from nano.averaging import WeightAverage
from nano.checkpoint import Checkpoint
from nano.parameters import load_section
from nano.schedule import constant_then_linear

logger = logging.getLogger(__name__)

_LATENT_GRID_PX = 8


@dataclass(frozen=True)
class AutoencoderParameters:
    """How the autoencoder is trained."""

    seed: int
    steps: int
    batch_size: int
    crop_px: int  # crops are aligned to the latent grid
    scribble_share: float  # of each batch
    recoloured_share: float  # of the batches, with permuted or scaled colours
    rescaled_share: float  # of the batches, made softer or coarser
    learning_rate: float
    last_learning_rate_share: float
    constant_share: float  # of the steps, before the rate falls
    gradient_weight: float  # of the L1 loss of neighbouring pixels' differences
    kl_weight: float  # per latent element, relative to a pixel's loss
    ema_decay: float
    checkpoint_seconds: float
    validate_every: int


def crop_batch(
    drawings: np.ndarray, scribbles: np.ndarray, parameters: AutoencoderParameters, step: int
) -> torch.Tensor:
    """Random crops, float32 (batch, 3, crop, crop) in -1..1; the same for the same step."""
    random = np.random.default_rng((parameters.seed, step))
    from_scribbles = round(parameters.batch_size * parameters.scribble_share)
    crops = []
    for place in range(parameters.batch_size):
        source = scribbles if place < from_scribbles else drawings
        picture = source[random.integers(len(source))]
        cells = (picture.shape[0] - parameters.crop_px) // _LATENT_GRID_PX
        top, left = random.integers(0, cells + 1, 2) * _LATENT_GRID_PX
        crops.append(picture[top : top + parameters.crop_px, left : left + parameters.crop_px])
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if random.random() < parameters.recoloured_share:
        gain = torch.from_numpy(random.uniform(0.5, 1.0, (1, 3, 1, 1))).float()
        shift = torch.from_numpy(random.uniform(-1, 1, (1, 3, 1, 1))).float() * (1 - gain)
        batch = batch[:, random.permutation(3).tolist()] * gain + shift
    if random.random() < parameters.rescaled_share:
        factor = float(random.choice([0.5, 0.75, 1.5, 2.0]))
        scaled = functional.interpolate(
            batch, scale_factor=factor, mode="bilinear", antialias=True, align_corners=False
        )
        if factor > 1:
            batch = scaled[..., : parameters.crop_px, : parameters.crop_px]
        else:
            batch = functional.interpolate(scaled, size=parameters.crop_px, mode="bilinear")
    return batch.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(
    output: torch.Tensor, target: torch.Tensor, gradient_weight: float
) -> torch.Tensor:
    """L1 + MSE + the weighted L1 of horizontal and vertical differences; images in -1..1."""
    error = output - target
    across = (error[..., :, 1:] - error[..., :, :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + error.square().mean() + gradient_weight * (across + down)


def training_step(
    model: AutoencoderKL, batch: torch.Tensor, parameters: AutoencoderParameters, step: int
) -> torch.Tensor:
    """The loss of one batch."""
    posterior = model.encode(batch).latent_dist
    generator = torch.Generator().manual_seed(parameters.seed * 1_000_003 + step)
    output = model.decode(posterior.sample(generator)).sample
    kl_per_element: torch.Tensor = posterior.kl().mean() / posterior.mean[0].numel()
    loss = reconstruction_loss(output, batch, parameters.gradient_weight)
    return loss + parameters.kl_weight * kl_per_element


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """Pictures through encoder (mean) and decoder; uint8 (pictures, height, width, 3) both ways."""
    outputs = []
    for start in range(0, len(pictures), 16):
        batch = torch.from_numpy(pictures[start : start + 16]).permute(0, 3, 1, 2) / 127.5 - 1
        decoded = model.decode(model.encode(batch).latent_dist.mean).sample
        outputs.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1))
    return torch.cat(outputs).numpy()


def mean_square_error(pictures: np.ndarray, others: np.ndarray) -> float:
    """Mean squared difference over pixels and channels on the 0-255 scale, at most 65025."""
    return float(np.square(pictures.astype(np.float64) - others.astype(np.float64)).mean())


def train_autoencoder(
    parameters: AutoencoderParameters, drawings: Path, out: Path, state_file: Path
) -> AutoencoderKL:
    """Trains, or goes on with the training of, the autoencoder; saves and returns its average."""
    training = np.load(drawings / "training.npy", mmap_mode="r")
    scribbles = np.load(drawings / "scribbles.npy", mmap_mode="r")
    held_out = np.load(drawings / "held_out.npy", mmap_mode="r")[:48]
    torch.manual_seed(parameters.seed)
    model = build_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=parameters.learning_rate, weight_decay=0.0)
    average = WeightAverage(model, parameters.ema_decay)
    checkpoint = Checkpoint(state_file, parameters.checkpoint_seconds)
    first_step = 0
    if (state := checkpoint.load()) is not None:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        average.updates = first_step = state["step"]
    for step in range(first_step, parameters.steps):
        rate = parameters.learning_rate * constant_then_linear(
            step, parameters.steps, parameters.constant_share, parameters.last_learning_rate_share
        )
        optimizer.param_groups[0]["lr"] = rate
        loss = training_step(
            model, crop_batch(training, scribbles, parameters, step), parameters, step
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
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
    return average.model


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    parameters = load_section(arguments.params, "autoencoder", AutoencoderParameters)
    train_autoencoder(parameters, arguments.drawings, arguments.out, arguments.state)


if __name__ == "__main__":
    main()
