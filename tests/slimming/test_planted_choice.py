"""The truth: an effect that sits in known blocks, which shares and the chooser must find.

Every planted block takes one step of the same length along the gradient of one direction in the
velocity, so that the blocks pull together as those of a trained LoRA do. Others are zero, or hold
random numbers of a fifth of that length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.adapters.attach import add_lora, lora_layers
from stages.contracts.blocks import BlockId
from stages.contracts.params import ModelParams
from stages.families.architecture import block_of, lora_modules, read_architecture
from stages.families.flow import predict_velocity
from stages.families.loading import load_transformer
from stages.families.noise import initial_noise, keyed_normal
from stages.families.text import batch_text
from stages.lens.attribution import Effect, block_shares, measure_effect
from stages.lens.interaction import measure_interaction, refit_strengths, removal_order
from stages.lens.questions import Ask, ask_here
from stages.sampling.gates import block_gates
from stages.sampling.prompts import NamedPrompt, embed_prompts

pytestmark = pytest.mark.slow

MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=16)
PROMPT = NamedPrompt("develop-0", "tok, a large robot in the centre, plain yellow background")
SIZE_PX, GUIDANCE, LENGTH, NOISE = 64, 2.5, 0.4, 0.2
SIGMAS = (0.6, 0.9)
COUNTS = (1, 3, 8)
"""Planted blocks in each stack."""
DRAWS = 4
"""Plants of each count: 12 in all."""


@dataclass(frozen=True)
class Garden:
    """A model with a LoRA in every block, whose effect can be planted anew."""

    blocks: tuple[BlockId, ...]
    sizes: np.ndarray
    layers: Mapping[str, torch.nn.Module]
    slopes: Mapping[str, torch.Tensor]
    ask: Ask

    def plant(self, planted: set[BlockId], noise: float, seed: int) -> Effect:
        """Return the effect of LoRA weights that are set as the docstring above says."""
        for name, layer in self.layers.items():
            block = block_of(name)
            if block in planted:
                of_block = [slope for n, slope in self.slopes.items() if block_of(n) == block]
                length = math.hypot(*(slope.norm().item() for slope in of_block))
                up = self.slopes[name] * (LENGTH / length)
            else:
                up = keyed_normal(self.slopes[name].shape, "noise", seed, name)
                numbers = sum(s.numel() for n, s in self.slopes.items() if block_of(n) == block)
                up = up * (noise * LENGTH / math.sqrt(numbers))
            layer.lora_B["default"].weight.data.copy_(up)
        return measure_effect(self.ask, len(SIGMAS), len(self.blocks), 16)


@pytest.fixture(scope="module")
def garden(nano_flux: Path) -> Iterator[Garden]:
    """nano-flux with a LoRA of rank 2 in all 57 blocks."""
    architecture, cpu = read_architecture(nano_flux), torch.device("cpu")
    transformer = load_transformer(nano_flux, MODEL, cpu)
    modules = lora_modules(architecture, "all")
    add_lora(transformer, modules, rank=2, alpha=2.0, seed=0)
    (text,) = embed_prompts(nano_flux, [PROMPT], MODEL, cpu).values()
    noise = torch.cat([initial_noise(architecture, SIZE_PX, seed) for seed in range(len(SIGMAS))])
    sigmas = torch.tensor(SIGMAS)

    def velocity(indices: torch.Tensor) -> torch.Tensor:
        texts = batch_text([text] * len(indices))
        return predict_velocity(transformer, noise[indices], sigmas[indices], texts, GUIDANCE)

    found = velocity(torch.arange(len(SIGMAS)))
    (found * keyed_normal((found.shape[-1],), "direction")).mean().backward()
    layers = lora_layers(transformer)
    slopes = {name: layer.lora_B["default"].weight.grad.clone() for name, layer in layers.items()}
    transformer.requires_grad_(False)
    numbers = {
        block: sum(
            layer.lora_A["default"].weight.numel() + layer.lora_B["default"].weight.numel()
            for name, layer in layers.items()
            if block_of(name) == block
        )
        for block in architecture.blocks
    }
    with block_gates(transformer, architecture.blocks) as gates:

        def gated(indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            gates.set(values)
            return velocity(indices)

        sizes = np.array([float(numbers[block]) for block in architecture.blocks])
        yield Garden(architecture.blocks, sizes, layers, slopes, ask_here(gated))


def plants(blocks: tuple[BlockId, ...]) -> Iterator[tuple[int, set[BlockId]]]:
    """Yield a seed and the planted blocks: 1, 3 or 8 of each stack, drawn anew each time."""
    for place, count in enumerate(COUNTS):
        for draw in range(DRAWS):
            seed = place * DRAWS + draw
            generator = np.random.default_rng(seed)
            planted = set()
            for stack in ("double", "single"):
                there = [block for block in blocks if block.stack == stack]
                planted |= {there[i] for i in generator.choice(len(there), count, replace=False)}
            yield seed, planted


def overlaps(garden: Garden, noise: float) -> list[tuple[float, float]]:
    """Return, per plant, the part of the planted blocks that shares and the chooser put first.

    As many blocks are looked at as were planted, so that precision and recall are the same.
    """
    found = []
    for seed, planted in plants(garden.blocks):
        effect = garden.plant(planted, noise, seed)
        shares = block_shares(effect, 3, 16).mean(axis=0)
        products = np.mean([*measure_interaction(effect, 16)], axis=0)
        by_share = np.argsort(-shares)[: len(planted)]
        by_choice = removal_order(products, garden.sizes, 1.0)[: len(planted)]
        hits = [
            len({garden.blocks[place] for place in first} & planted) / len(planted)
            for first in (by_share, by_choice)
        ]
        found.append((hits[0], hits[1]))
    assert len(found) == len(COUNTS) * DRAWS
    return found


def test_exactly_the_planted_blocks_are_found(garden: Garden) -> None:
    """Nothing elsewhere: precision and recall are 1 for all twelve plants, by both."""
    assert overlaps(garden, 0.0) == [(1.0, 1.0)] * len(COUNTS) * DRAWS


def test_weak_noise_elsewhere_hides_little(garden: Garden) -> None:
    """Random weights of a fifth of the length in all others: precision and recall stay at 0.9."""
    found = overlaps(garden, NOISE)
    assert np.mean([by_share for by_share, _ in found]) >= 0.9
    assert np.mean([by_choice for _, by_choice in found]) >= 0.9


def test_silent_blocks_have_no_share_and_no_strength(garden: Garden) -> None:
    """Without knowing how many were planted: the others' shares are 0, and none is in the way."""
    (seed, planted), *_ = list(plants(garden.blocks))[DRAWS:]
    effect = garden.plant(planted, 0.0, seed)
    shares = block_shares(effect, 3, 16).mean(axis=0)
    there = np.array([block in planted for block in garden.blocks])
    assert (shares[~there] == 0.0).all()
    assert shares[there].sum() == pytest.approx(1.0, abs=0.02)
    products = np.mean([*measure_interaction(effect, 16)], axis=0)
    assert (refit_strengths(products, there, 1.0)[there] == 1.0).all()
