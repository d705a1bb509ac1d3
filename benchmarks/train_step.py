"""Seconds of our training step next to the same step in plain diffusers and peft.

    python -m benchmarks.train_step [--steps 20]

Both train the same LoRA on nano-flux from the same pictures, batch and optimiser, in one process,
turn by turn, so that a busy machine slows both. The plain step is written as diffusers' example
trainer (examples/dreambooth/train_dreambooth_lora_flux.py) does it with nothing cached: pictures go
through the autoencoder and captions through the text encoders in every step, the adapter is peft's
own. It is timed twice: as it is, and with latents and texts made beforehand, which leaves the
difference that is not caching.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from diffusers import FluxPipeline
from peft import LoraConfig

from stages.adapters.attach import add_lora
from stages.contracts.params import Params, load_params
from stages.encoding.encoded import Encoded, Latents, Picture
from stages.families.architecture import lora_modules, read_architecture
from stages.families.latents import encode_pictures
from stages.families.loading import load_text_encoders, load_transformer, load_vae
from stages.families.noise import keyed_normal
from stages.families.text import encode_prompts
from stages.training.lora_forward import shorten_lora_forward
from stages.training.step import take_step
from stages.training.trainee import make_trainee

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "data" / "nano-flux"
CPU: Final = torch.device("cpu")
PICTURES: Final = 8
WARM_UP: Final = 2
MAX_NORM: Final = 1.0


def pixels_and_captions(params: Params) -> tuple[torch.Tensor, list[str]]:
    """Return random pictures [8, 3, H, W] in [-1, 1] and a caption for each."""
    side = params.encode.sizes_px[0]
    pixels = keyed_normal([PICTURES, 3, side, side], "pixels").clamp(-1, 1)
    return pixels, [f"tok, picture number {index}" for index in range(PICTURES)]


def our_step(params: Params) -> Callable[[int], float]:
    """Return a function that takes step n as stage train does, and gives its loss."""
    transformer = load_transformer(FOLDER, params.model, CPU)
    train = params.train
    add_lora(
        transformer,
        lora_modules(read_architecture(FOLDER), train.targets),
        train.rank,
        train.alpha,
        train.seed,
    )
    shorten_lora_forward(transformer)
    trainee = make_trainee(transformer, train)
    data = encoded(params)
    return lambda step: take_step(trainee, data, train, step).loss


def encoded(params: Params) -> Encoded:
    """Return the pictures as stage encode hands them over."""
    pixels, captions = pixels_and_captions(params)
    mean, std = encode_pictures(load_vae(FOLDER, CPU), pixels)
    encoders = load_text_encoders(FOLDER, params.model.precision, CPU)
    *texts, empty = encode_prompts(encoders, [*captions, ""], params.model.text_tokens)
    pictures = tuple(
        picture(name, Latents(mean[index], std[index]), texts[index])
        for index, name in enumerate(captions)
    )
    return Encoded(pictures, pictures[:1], empty, samples=(), plain=(), sha256="0" * 64)


def picture(name: str, latents: Latents, text: Any) -> Picture:
    """Return one training picture."""
    return Picture(name, name, latents, text, 1)


def plain_step(params: Params, *, cached: bool) -> Callable[[int], float]:
    """Return a function that takes a step in plain diffusers and peft, and gives its loss."""
    train = params.train
    pipeline = FluxPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    transformer, vae = pipeline.transformer.requires_grad_(False), pipeline.vae
    names = "|".join(lora_modules(read_architecture(FOLDER), train.targets)).replace(".", r"\.")
    transformer.add_adapter(LoraConfig(r=train.rank, lora_alpha=train.alpha, target_modules=names))
    matrices = [matrix for matrix in transformer.parameters() if matrix.requires_grad]
    optimiser = torch.optim.AdamW(matrices, lr=train.learning_rate, weight_decay=train.weight_decay)
    pixels, captions = pixels_and_captions(params)
    generator = torch.Generator().manual_seed(train.seed)
    side = params.encode.sizes_px[0] // 16

    guidance = 1.0 if train.guidance is None else train.guidance

    @torch.no_grad()
    def inputs(chosen: list[int]) -> tuple[torch.Tensor, ...]:
        posterior = vae.encode(pixels[chosen]).latent_dist
        latents = (posterior.sample(generator) - vae.config.shift_factor) * (
            vae.config.scaling_factor
        )
        text = pipeline.encode_prompt(
            [captions[index] for index in chosen],
            None,
            max_sequence_length=params.model.text_tokens,
        )
        return (latents, *text)

    order = [
        [(step * train.batch + place) % PICTURES for place in range(train.batch)]
        for step in range(PICTURES)
    ]
    kept = [inputs(chosen) for chosen in order] if cached else []

    def take(step: int) -> float:
        place = step % PICTURES
        latents, tokens, pooled, text_ids = kept[place] if cached else inputs(order[place])
        noise = torch.randn(latents.shape, generator=generator)
        sigmas = torch.sigmoid(torch.randn(train.batch, generator=generator))
        level = sigmas.view(-1, 1, 1, 1)
        noised = (1 - level) * latents + level * noise
        count, channels, height, width = latents.shape
        velocity = transformer(
            hidden_states=pipeline._pack_latents(noised, count, channels, height, width),
            timestep=sigmas,
            guidance=torch.full([count], guidance),
            pooled_projections=pooled,
            encoder_hidden_states=tokens,
            txt_ids=text_ids,
            img_ids=pipeline._prepare_latent_image_ids(count, side, side, CPU, torch.float32),
            return_dict=False,
        )[0]
        target = pipeline._pack_latents(noise - latents, count, channels, height, width)
        loss = (velocity.float() - target.float()).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(matrices, MAX_NORM)
        optimiser.step()
        optimiser.zero_grad()
        return float(loss.item())

    return take


def seconds(steps: int, takers: dict[str, Callable[[int], float]]) -> dict[str, float]:
    """Return the median seconds of each taker's step, all of them taking turns."""
    times: dict[str, list[float]] = {name: [] for name in takers}
    for step in range(1, steps + WARM_UP + 1):
        for name, take in takers.items():
            start = time.perf_counter()
            take(step)
            if step > WARM_UP:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def table(measured: dict[str, float]) -> str:
    """Return the results as a Markdown table, with how often ours fits into each."""
    rows = ["| step | seconds | times ours |", "|---|---:|---:|"]
    ours = next(iter(measured.values()))
    rows += [f"| {name} | {value:.3f} | {value / ours:.2f} |" for name, value in measured.items()]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Time all of them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    if threads := os.environ.get("BLOCKLENS_THREADS"):
        torch.set_num_threads(int(threads))
    params = load_params(ROOT / "presets" / "nano-flux.yaml")
    takers = {
        "ours": our_step(params),
        "plain diffusers and peft": plain_step(params, cached=False),
        "the same, latents and texts cached": plain_step(params, cached=True),
    }
    sys.stdout.write(table(seconds(arguments.steps, takers)))
    sys.stdout.write(
        f"\nbatch {params.train.batch}, rank {params.train.rank}, {params.encode.sizes_px[0]} px, "
        f"float32, {torch.get_num_threads()} threads, median of {arguments.steps} steps\n"
    )


if __name__ == "__main__":
    main()
