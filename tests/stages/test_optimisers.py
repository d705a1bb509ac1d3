"""Every optimiser that runs on a CPU trains the demo: held-out pictures are predicted better."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from stages.adapters.attach import add_shaped_lora
from stages.caption import caption
from stages.contracts.params import Params, load_params
from stages.encode import encode
from stages.encoding.encoded import Encoded, read_encoded
from stages.families.architecture import read_architecture
from stages.families.loading import load_transformer
from stages.prepare import prepare
from stages.training.loop import Run, train_adapter
from stages.training.lora_forward import shorten_lora_forward
from stages.training.targets import plan_lora
from tests.optimisation.test_optimiser import ON_CPU

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LEAST_IMPROVEMENT = 0.15


class Setting(NamedTuple):
    """A rate that suits the optimiser, and how many steps it needs with it."""

    learning_rate: float
    steps: int


SETTINGS = {
    "adamw": Setting(0.002, 25),
    "adafactor": Setting(0.002, 25),
    "lion": Setting(0.0005, 25),
    "prodigy": Setting(1.0, 100),  # its estimate of the rate starts at 1e-6
    "schedule-free-adamw": Setting(0.005, 25),
}


@pytest.fixture(scope="module")
def demo() -> Params:
    """The demo's params."""
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def encoded(
    demo: Params, weights_manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> Encoded:
    """The demo's pictures, prepared, captioned and encoded as the pipeline does."""
    folder = tmp_path_factory.mktemp("demo")
    images, held_out = (ROOT / "data/demo" / name for name in ("train", "validation"))
    prepare(demo.prepare, images=images, validation=held_out, out=folder / "prepare")
    caption(
        demo.caption,
        demo.model.text_tokens,
        weights=weights_manifest,
        images=folder / "prepare",
        captions=images,
        validation_captions=held_out,
        captioner=ROOT / demo.caption.folder,
        out=folder / "caption",
    )
    encode(
        demo.encode,
        demo.model,
        demo.prompts.without_trigger,
        demo.sampling.steps,
        demo.sampling.guidance,
        demo.sampling.batch,
        weights=weights_manifest,
        images=folder / "prepare",
        captions=folder / "caption" / "captions.csv",
        out=folder / "encode",
    )
    return read_encoded(folder / "encode")


@pytest.mark.parametrize("optimiser", ON_CPU)
def test_trains_the_demo(
    demo: Params, encoded: Encoded, nano_flux: Path, tmp_path: Path, optimiser: str
) -> None:
    """At least 15 % below the base model's validation loss, in as few steps as do it."""
    torch.set_num_threads(1)
    setting = SETTINGS[optimiser]
    change = {
        **setting._asdict(),
        "optimiser": optimiser,
        "warmup_steps": 0,
        "validation_every": setting.steps,
        "checkpoint_every": setting.steps,
        "probe_pictures": 1,
    }
    params = demo.train.model_copy(update=change)
    transformer = load_transformer(nano_flux, demo.model, torch.device("cpu"))
    add_shaped_lora(transformer, plan_lora(read_architecture(nano_flux), params), params.seed)
    shorten_lora_forward(transformer)
    run = Run(transformer, encoded, params, demo.model, lambda _: {}, lambda: ())
    history = train_adapter(run, tmp_path).history
    base, end = history[0].validation_loss, history[-1].validation_loss
    assert base is not None
    assert end is not None
    assert 1 - end / base > LEAST_IMPROVEMENT
