"""The truth test: an adapter whose effect sits in known blocks, which the lens must find."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stages.adapters.attach import add_lora, extract_adapter, lora_layers
from stages.adapters.files import write_adapter
from stages.adapters.module import Adapter, LoraPair
from stages.attribute import attribute
from stages.contracts.blocks import BlockId
from stages.contracts.params import (
    AttributeParams,
    ModelParams,
    PromptsParams,
    RenderParams,
    SamplingParams,
)
from stages.contracts.tables import RENDERED, SHARES, read_table
from stages.families.architecture import block_of, lora_modules, read_architecture
from stages.families.flow import predict_velocity
from stages.families.loading import load_transformer
from stages.families.noise import initial_noise, keyed_normal
from stages.families.text import batch_text
from stages.imaging.metrics import recovery
from stages.render import render
from stages.sampling.prompts import embed_prompts, name_prompts

MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=16)
SAMPLING = SamplingParams(size_px=64, steps=2, guidance=2.5, batch=12)
PROMPTS = PromptsParams(
    develop=["tok, a large robot in the centre, plain yellow background"],
    held_out=["tok, a small robot on the left, striped green background"],
    without_trigger=[],
    seeds=[0],
    held_out_seeds=[1],
)
ATTRIBUTE = AttributeParams(
    nodes=3,
    prompts=[],
    seeds=[0],
    sigmas=[0.5, 0.9],
    resamples=100,
    confidence=0.9,
    seed=0,
    gradient_checkpointing=False,
)
PLANTED = (BlockId("double", 4), BlockId("single", 3), BlockId("single", 30))
SILENT = (
    BlockId("double", 0),
    BlockId("double", 18),
    BlockId("single", 0),
    BlockId("single", 4),
    BlockId("single", 37),
)
"""Present with zero weights: the ends of both stacks, and neighbours of what is planted."""


STRENGTH = 0.4


def plant(folder: Path, silent: tuple[BlockId, ...]) -> Adapter:
    """An adapter that moves every token of every picture in one direction, by PLANTED alone.

    The planted blocks get one step along the gradient, each of the same length: as in a trained
    LoRA, and unlike with random numbers, they pull together, whatever the base model's weights.
    """
    architecture, cpu = read_architecture(folder), torch.device("cpu")
    transformer = load_transformer(folder, MODEL, cpu)
    wanted = {*PLANTED, *silent}
    modules = [name for name in lora_modules(architecture, "all") if block_of(name) in wanted]
    add_lora(transformer, modules, rank=2, alpha=2.0, seed=0)
    texts = embed_prompts(folder, name_prompts(PROMPTS).develop, MODEL, cpu)
    noise = torch.cat([initial_noise(architecture, SAMPLING.size_px, seed) for seed in range(4)])
    text = batch_text([*texts.values()] * 4)
    velocity = predict_velocity(transformer, noise, torch.full([4], 0.9), text, 2.5)
    (velocity * keyed_normal((velocity.shape[-1],), "direction")).mean().backward()
    layers = lora_layers(transformer)
    slopes = {name: layer.lora_B["default"].weight.grad for name, layer in layers.items()}
    pairs = {}
    for name, pair in extract_adapter(transformer, {}).modules.items():
        block = block_of(name)
        length = math.hypot(*(g.norm().item() for n, g in slopes.items() if block_of(n) == block))
        strength = STRENGTH / length if block in PLANTED else 0.0
        pairs[name] = LoraPair(pair.down, strength * slopes[name], pair.alpha)
    return Adapter(pairs, {})


@pytest.fixture(scope="module", params=["others absent", "others zero"], name="lens")
def planted_lens(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    nano_flux: Path,
    weights_manifest: Path,
) -> Path:
    """A folder with render's and attribute's outputs for a planted adapter."""
    folder = tmp_path_factory.mktemp("planted")
    adapter = folder / "adapter.safetensors"
    write_adapter(adapter, plant(nano_flux, SILENT if request.param == "others zero" else ()))
    paths = {"weights": weights_manifest, "adapter": adapter}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKLENS_STATE", str(folder / "state"))
        params = RenderParams(
            modes=["only"],
            without_trigger_modes=[],
            strengths=[],
            groups={},
            subsets={},
            random_seed=None,
            compile=False,
        )
        render(params, MODEL, SAMPLING, PROMPTS, **paths, out=folder / "render")
    attribute(ATTRIBUTE, MODEL, SAMPLING, PROMPTS, **paths, out=folder / "attribute")
    return folder


def leaders(scores: pd.Series) -> set[str]:
    """The three blocks with the highest scores."""
    return set(scores.sort_values(ascending=False).index[:3])


def only_recoveries(folder: Path) -> pd.Series:
    """The mean recovery of each block's `only` pictures."""
    index = read_table(RENDERED, folder / "index.csv")

    def picture(file: str) -> np.ndarray:
        return np.asarray(Image.open(folder / file))

    values: dict[str, list[float]] = {}
    for _, group in index.groupby(["prompt", "seed"]):
        files = group.set_index("variant")["file"]
        for variant in files.index[files.index.str.startswith("only:")]:
            value = recovery(*(picture(files[name]) for name in (variant, "none", "full")))
            values.setdefault(variant.removeprefix("only:"), []).append(value)
    return pd.Series({block: float(np.mean(found)) for block, found in values.items()})


def test_shares_find_the_planted_blocks(lens: Path) -> None:
    """Acceptance 8: exactly the planted blocks lead the shares and have nearly all of them."""
    shares = read_table(SHARES, lens / "attribute" / "shares.csv").set_index("block")["share"]
    assert leaders(shares) == {str(block) for block in PLANTED}
    assert shares[[str(block) for block in PLANTED]].sum() == pytest.approx(1.0, abs=0.05)


def test_pictures_find_the_planted_blocks(lens: Path) -> None:
    """Acceptance 8: exactly the planted blocks lead the ranking by recovery of one block alone."""
    recoveries = only_recoveries(lens / "render")
    planted = {str(block) for block in PLANTED}
    assert leaders(recoveries) == planted
    assert recoveries[sorted(planted)].min() > 0.0
    assert (recoveries.drop(sorted(planted)) == 0.0).all()
