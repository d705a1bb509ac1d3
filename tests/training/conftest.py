"""A training set of random latents, and runs on the tiny model that take milliseconds a step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import add_shaped_lora
from stages.contracts.params import ModelParams, TrainParams, load_params
from stages.encoding.encoded import Encoded, Latents, Picture, Prompt
from stages.families.architecture import Architecture
from stages.families.noise import keyed_normal
from stages.families.text import TextEmbedding
from stages.training.loop import Run
from stages.training.lora_forward import shorten_lora_forward
from stages.training.targets import plan_lora

LATENT_SHAPE = (8, 4, 4)


def make_text(name: str) -> TextEmbedding:
    """Return an embedding that depends on `name`: 6 tokens of 64 numbers and 64 pooled ones."""
    return TextEmbedding(keyed_normal([6, 64], "tokens", name), keyed_normal([64], "pooled", name))


def make_picture(name: str) -> Picture:
    """Return a picture of random latents, 8 channels of 4 x 4."""
    mean = keyed_normal(LATENT_SHAPE, "mean", name)
    std = keyed_normal(LATENT_SHAPE, "std", name).abs() * 0.1
    return Picture(name, f"tok, {name}", Latents(mean, std), make_text(name), 1)


def attach(transformer: FluxTransformer2DModel, params: TrainParams) -> None:
    """Put the adapter of `params` on the model, as the stage does."""
    plan = plan_lora(Architecture.from_config(transformer.config), params)
    add_shaped_lora(transformer, plan, params.seed)


@pytest.fixture
def encoded() -> Encoded:
    """Five training pictures, two held-out ones, one sample prompt."""
    return Encoded(
        training=tuple(make_picture(f"picture-{index}") for index in range(5)),
        validation=tuple(make_picture(f"held-out-{index}") for index in range(2)),
        empty=make_text(""),
        samples=(Prompt("tok", make_text("tok")),),
        plain=(Prompt("a circle", make_text("a circle")),),
        sha256="0" * 64,
        trigger="tok",
    )


@pytest.fixture
def params() -> TrainParams:
    """The demo's recipe, shortened to six steps."""
    root = Path(__file__).parents[2]
    short = {
        "rank": 2,
        "alpha": 2.0,
        "steps": 6,
        "batch": 2,
        "warmup_steps": 2,
        "caption_dropout": 0.3,
        "validation_every": 2,
        "checkpoint_every": 4,
        "sample_every": 3,
    }
    return load_params(root / "params.yaml").train.model_copy(update=short)


@pytest.fixture
def model() -> ModelParams:
    """The demo's way to run the base model."""
    return load_params(Path(__file__).parents[2] / "params.yaml").model


@pytest.fixture
def make_run(
    tiny_flux: FluxTransformer2DModel, encoded: Encoded, params: TrainParams, model: ModelParams
) -> Callable[..., Run]:
    """Return a maker of equal runs, each with a model of its own and an adapter at its start."""
    weights = {name: tensor.clone() for name, tensor in tiny_flux.state_dict().items()}

    def make(
        *, change: dict[str, object] | None = None, data: Encoded = encoded, dies_at: int = 0
    ) -> Run:
        chosen = params.model_copy(update=change or {})
        transformer = FluxTransformer2DModel.from_config(tiny_flux.config)
        transformer.load_state_dict(weights)
        transformer.eval().requires_grad_(False)
        attach(transformer, chosen)
        shorten_lora_forward(transformer)
        calls = 0

        def draw() -> list[np.ndarray]:
            nonlocal calls
            calls += 1
            if calls == dies_at:
                raise RuntimeError("killed")
            return [np.full((8, 8, 3), calls, dtype=np.uint8)]

        return Run(transformer, data, chosen, model, lambda step: {"step": str(step)}, draw)

    return make


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt also where a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A tiny model is faster on one thread, and the machine may be shared."""
    torch.set_num_threads(1)
