"""Stage `latents`: the training drawings as latents, with the autoencoder's final factors.

Reads the drawings and the trained autoencoder; writes `autoencoder/` (the same weights, with the
scaling and shift factor measured on the latents), `latents.npy`, float16 (pictures, 8, 16, 16) as
the transformer sees them: (latent - shift) * scaling, mean 0 and standard deviation 1 overall.

With `--factors FOLDER` the factors are those of that autoencoder instead, so that the latents of
the refined autoencoder are where the transformer learned them.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from nano.judge import to_tensor

logger = logging.getLogger(__name__)

_BATCH = 32


@torch.no_grad()
def encode_pictures(model: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """The posterior means, float32 (pictures, 8, height / 8, width / 8), not yet scaled."""
    latents = []
    for start in range(0, len(pictures), _BATCH):
        batch = to_tensor(pictures[start : start + _BATCH])
        batch = batch.contiguous(memory_format=torch.channels_last)
        latents.append(model.encode(batch).latent_dist.mean.contiguous())
        if start % 4000 < _BATCH:
            logger.info("%d of %d pictures", start, len(pictures))
    return torch.cat(latents).numpy()


def write_latents(drawings: Path, autoencoder: Path, factors: Path | None, out: Path) -> None:
    """Encodes all training drawings and fixes the factors of the autoencoder."""
    model = AutoencoderKL.from_pretrained(autoencoder).to(memory_format=torch.channels_last)
    latents = encode_pictures(model, np.load(drawings / "training.npy", mmap_mode="r"))
    shift, deviation = float(latents.mean()), float(latents.std())
    if factors is not None:
        config = AutoencoderKL.load_config(factors)
        shift, deviation = config["shift_factor"], 1.0 / config["scaling_factor"]
    model.register_to_config(shift_factor=shift, scaling_factor=1.0 / deviation)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out / "autoencoder")
    np.save(out / "latents.npy", ((latents - shift) / deviation).astype(np.float16))
    logger.info("shift %.5f, deviation %.5f", shift, deviation)


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--factors", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    write_latents(arguments.drawings, arguments.autoencoder, arguments.factors, arguments.out)


if __name__ == "__main__":
    main()
