"""The computed memory is what a step takes, and every preset fits the card in its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel

from benchmarks.flux import TRANSFORMER
from benchmarks.memory import (
    DOCUMENT,
    GIB,
    MARKS,
    STATE_MARKS,
    Step,
    adapted_model,
    decoding_peak,
    need,
    need_of,
    run_step,
    state_table,
    step_usage,
    table,
)
from stages.contracts.params import ModelParams
from stages.families.loading import load_transformer
from tests.presets import load_preset

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.03
CARDS = sorted((ROOT / "presets").glob("*gb.yaml"))
USABLE = 0.95  # of a card, beside a desktop


@pytest.fixture
def config(nano_flux: Path) -> dict[str, Any]:
    """Nano's config, as far as it describes the model."""
    whole = dict(FluxTransformer2DModel.load_config(nano_flux / "transformer"))
    values = {name: value for name, value in whole.items() if not name.startswith("_")}
    return {**values, "axes_dims_rope": tuple(values["axes_dims_rope"])}


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_computed_memory_is_the_measured_one(
    config: dict[str, Any], precision: str, checkpointing: bool
) -> None:
    """A real step on nano's 57 blocks against the sum over shallow models without contents."""
    step = Step(128, 2, 32, 8, "all", precision, checkpointing)
    measured = run_step(adapted_model(config, step, "cpu"), step)
    computed = step_usage(config, step)
    assert computed.kept == pytest.approx(measured.kept, rel=TOLERANCE)
    assert computed.peak == pytest.approx(measured.peak, rel=TOLERANCE)


@pytest.mark.parametrize("quantisation", ["int8", "fp8"])
def test_computed_weights_are_those_loaded(
    config: dict[str, Any], nano_flux: Path, quantisation: str
) -> None:
    """Bytes of nano as torchao stores it."""
    params = ModelParams(
        precision="bfloat16", quantisation=quantisation, offload="none", text_tokens=8
    )
    transformer = load_transformer(nano_flux, params, torch.device("cpu"))
    tensors = [
        part
        for weight in transformer.parameters()
        for part in ((weight.qdata, weight.scale) if hasattr(weight, "qdata") else (weight,))
    ]
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    step = Step(64, 1, 8, 1, "attention", "bfloat16", checkpointing=True)
    assert need(config, step, quantisation, 64).weights == stored


def test_flux_has_its_published_size() -> None:
    """11.9 billion numbers: 22.2 GiB in bfloat16, a quarter and a little more in nf4."""
    step = Step(512, 1, 512, 16, "all", "bfloat16", checkpointing=True)
    plain, small = (need(TRANSFORMER, step, name, 512) for name in ("none", "nf4"))
    assert plain.weights / GIB == pytest.approx(22.17, abs=0.01)
    assert 0.26 < small.weights / plain.weights < 0.28
    assert plain.adapter == 8 * 85_917_696  # ai-toolkit's rank 16 on 494 layers


def test_decoding_grows_with_the_picture() -> None:
    """Four times the pixels, about four times the memory."""
    assert decoding_peak(512) / decoding_peak(256) == pytest.approx(4, rel=0.1)


def test_presets_for_cards_are_found() -> None:
    """The loop below runs over something."""
    assert {path.stem.split("-")[-1] for path in CARDS} >= {"12gb", "16gb", "24gb"}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_preset_fits_its_card_and_says_so(path: Path, tmp_path: Path) -> None:
    """The number in a preset's first lines is the computed one, and smaller than the card."""
    size = re.search(r"-(\d+)gb$", path.stem)
    total = need_of(load_preset(path, tmp_path)).total / GIB
    assert size is not None
    assert total < USABLE * int(size[1])
    said = re.search(r"Training needs (\d+\.\d) GiB", path.read_text(encoding="utf-8"))
    assert said is not None
    assert float(said[1]) == pytest.approx(total, abs=0.06)


def test_presets_have_the_same_keys() -> None:
    """A key that one file lacks is one that a reader of it never learns of."""
    files = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
    keys = [
        {
            f"{section}.{key}"
            for section, values in yaml.safe_load(path.read_text(encoding="utf-8")).items()
            for key in values
        }
        for path in files
    ]
    assert len(files) >= 5
    assert all(each == keys[0] for each in keys)


@pytest.mark.slow
def test_table_in_the_document_is_the_computed_one() -> None:
    """`python -m benchmarks.memory --write` was run after the last change."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.split(MARKS[0])[1].split(MARKS[1])[0] == table()


def test_table_of_state_in_the_document_is_the_computed_one() -> None:
    """What each optimiser adds, by the same command."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.split(STATE_MARKS[0])[1].split(STATE_MARKS[1])[0] == state_table()


def test_what_a_run_keeps_is_counted(tmp_path: Path) -> None:
    """Optimiser, moving average and training adapter of the params file, each in its part."""
    schnell = load_preset(ROOT / "presets" / "flux1-schnell-24gb.yaml", tmp_path)
    plain = need_of(schnell)
    change = {"optimiser": "prodigy", "ema_decay": 0.99, "training_adapter": None}
    train = schnell.train.model_copy(update=change)
    changed = need_of(schnell.model_copy(update={"train": train}))
    assert plain.helper == 4 * 85_917_696
    assert (plain.average, changed.helper) == (0, 0)
    assert changed.average == plain.adapter // 2
    assert changed.optimiser == 2 * plain.optimiser == 2 * plain.adapter
