"""The floor of a training step: its floating-point operations, counted on tensors without contents.

`torch.utils.flop_counter` counts the matrix products of a forward and a backward pass, attention
and the adapter's own among them. Double and single blocks are each alike and so is each one's share
of the backward pass, so models of one and two blocks of each kind give the whole one's number
exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import Step, adapted_model
from stages.families.architecture import block_of
from stages.families.latents import TOKEN_PX
from stages.families.loading import checkpoint_blocks
from stages.families.text import TextBatch
from stages.runtime.device import DTYPES
from stages.training.lora_forward import shorten_lora_forward
from stages.training.objective import Batch, flow_losses

Shapes = Counter[tuple[int, int, int]]


@dataclass(frozen=True)
class Work:
    """FLOP of a step, and the shapes (M, K, N) of the blocks' Linear layers with their counts."""

    flop: int
    shapes: Shapes


def step_work(config: Mapping[str, Any], step: Step) -> Work:
    """Return the work of one step of the whole model; `step.batch` pictures."""
    doubles, singles = config["num_layers"], config["num_single_layers"]
    one, two_doubles, two_singles = (
        shallow_work(config, step, *depth) for depth in ((1, 1), (2, 1), (1, 2))
    )
    flop = one.flop + (doubles - 1) * (two_doubles.flop - one.flop)
    flop += (singles - 1) * (two_singles.flop - one.flop)
    shapes: Shapes = Counter()
    for shape, count in one.shapes.items():
        more_doubles = two_doubles.shapes[shape] - count
        more_singles = two_singles.shapes[shape] - count
        shapes[shape] = count + (doubles - 1) * more_doubles + (singles - 1) * more_singles
    return Work(flop, shapes)


def shallow_work(config: Mapping[str, Any], step: Step, doubles: int, singles: int) -> Work:
    """Return the work of one step of a model with so many blocks, counted one by one."""
    depth = {"num_layers": doubles, "num_single_layers": singles}
    transformer = adapted_model({**config, **depth}, replace(step, checkpointing=False), "meta")
    shapes = _watch(transformer)
    shorten_lora_forward(transformer)
    if step.checkpointing:
        checkpoint_blocks(transformer)
    batch = _empty_batch(config, step)
    with FlopCounterMode(display=False) as counter:
        losses = flow_losses(transformer, batch, 1.0)
        forward = Counter(shapes)
        torch.autograd.backward([losses.mean()])
    return Work(counter.get_total_flops(), forward)


def _watch(transformer: FluxTransformer2DModel) -> Shapes:
    """Count the products of the blocks' Linear layers as they run; modulations, of M = 1, apart."""
    shapes: Shapes = Counter()

    def count(weight: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].numel() // weight.shape[1]
            shapes[rows, weight.shape[1], weight.shape[0]] += 1

        return hook

    for name, module in transformer.named_modules():
        layer, _, last = name.rpartition(".")
        if last == "base_layer" and "norm" not in layer and str(block_of(layer)) != "base":
            module.register_forward_pre_hook(count(module.weight))
    return shapes


def _empty_batch(config: Mapping[str, Any], step: Step) -> Batch:
    side, dtype = step.size_px // TOKEN_PX, DTYPES[step.precision]
    with torch.device("meta"):
        packed = torch.zeros(step.batch, side * side, config["in_channels"])
        tokens = torch.zeros(step.batch, step.text_tokens, config["joint_attention_dim"])
        pooled = torch.zeros(step.batch, config["pooled_projection_dim"])
        sigmas = torch.zeros(step.batch)
    text = TextBatch(tokens.to(dtype), pooled.to(dtype))
    return Batch(packed, packed, sigmas, text, (side, side))
