"""Seconds of the lens's pictures at FLUX.1's real shape, and what a set of 60 of them comes to.

    python -m benchmarks.flux_render
    python -m benchmarks.flux_render --tiny          the whole path at nano's shape, on a CPU

Needs a GPU with room for 24 GB of weights, and no weights: they are random, bfloat16, and made on
the GPU. Three ways to make pictures with one block of the LoRA on are timed, a forward pass each:
the loop (PEFT's scales, one picture at a time: every block's LoRA is computed), render's gates
(blocks that are off are skipped) and render's compiled gates, both in batches. The decoder is timed
by itself, in float32 as render runs it.

A set is `pictures` x (`steps` forward passes + one decoding). The set of the article
civitai.com/articles/8362 has 60 pictures, 57 blocks and the references, and took its author 30 to
40 minutes on an RTX 3090 Ti: 30 to 40 s a picture. Next to the times stands the work itself:
floating-point operations of a picture, counted on tensors without contents.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flux import VAE
from benchmarks.flux_step import ROOT, machine, random_transformer, recipe, shape_of
from stages.adapters.attach import ADAPTER_NAME, add_lora
from stages.families.architecture import Architecture, block_of, lora_modules
from stages.families.flow import predict_velocity
from stages.families.latents import TOKEN_PX, decode_pictures
from stages.families.text import TextBatch
from stages.runtime.device import configure_torch
from stages.sampling.compiled_gates import compiled_gates
from stages.sampling.gates import BlockGates, block_gates

PICTURES: Final = 60
RANK: Final = 16
WARM_UP: Final = 2
TERA: Final = 1e12
WAYS: Final = {
    "loop": "loop: PEFT's scales, batch 1",
    "gates": "render's gates, batch {batch}",
    "compiled": "render's compiled gates, batch {batch}",
}


@dataclass(frozen=True)
class Setting:
    """The shape of the pictures and of the work."""

    size_px: int
    text_tokens: int
    batch: int
    steps: int
    repeats: int
    guidance: float

    @property
    def tokens(self) -> int:
        """Picture tokens."""
        return (self.size_px // TOKEN_PX) ** 2


def forward_flop(config: Mapping[str, Any], setting: Setting) -> int:
    """Return the floating-point operations of one forward pass of one picture, without LoRA.

    Blocks of a kind are alike, so models of one and two of each give the whole one's number.
    """
    one, doubles, singles = (_shallow_flop(config, setting, *d) for d in ((1, 1), (2, 1), (1, 2)))
    flop: int = one + (config["num_layers"] - 1) * (doubles - one)
    return flop + int(config["num_single_layers"] - 1) * (singles - one)


def _shallow_flop(config: Mapping[str, Any], setting: Setting, doubles: int, singles: int) -> int:
    with torch.device("meta"):
        shallow = {**config, "num_layers": doubles, "num_single_layers": singles}
        transformer = FluxTransformer2DModel(**shallow)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            _forward(transformer, setting, batch=1)
    return int(counter.get_total_flops())


def _forward(transformer: FluxTransformer2DModel, setting: Setting, batch: int) -> torch.Tensor:
    config, place = transformer.config, {"dtype": transformer.dtype, "device": transformer.device}
    text = TextBatch(
        torch.zeros(batch, setting.text_tokens, config.joint_attention_dim, **place),
        torch.zeros(batch, config.pooled_projection_dim, **place),
    )
    packed = torch.ones(batch, setting.tokens, config.in_channels, **place)
    levels = torch.full([batch], 0.5, device=transformer.device)
    return predict_velocity(transformer, packed, levels, text, setting.guidance)


def time_ways(transformer: FluxTransformer2DModel, setting: Setting) -> dict[str, float]:
    """Return seconds per picture of a forward pass with one block on, by way."""
    seconds = {}
    for way in WAYS:
        batch = 1 if way == "loop" else setting.batch
        with _one_block_on(transformer, way, batch), torch.no_grad():
            taken = _median_s(partial(_forward, transformer, setting, batch), setting.repeats)
        seconds[way] = taken / batch
    return seconds


@contextmanager
def _one_block_on(transformer: FluxTransformer2DModel, way: str, batch: int) -> Iterator[None]:
    """Let the block in the middle of the model alone have its LoRA, for as long as this lasts."""
    blocks = Architecture.from_config(transformer.config).blocks
    values = [float(place == len(blocks) // 2) for place in range(len(blocks))]
    if way == "loop":
        scales = dict(zip(blocks, values, strict=True))
        _set_scales(transformer, lambda module: scales[block_of(module)])
        yield
        _set_scales(transformer, lambda _module: 1.0)
        return
    on_gpu = transformer.device.type == "cuda"
    with ExitStack() as stack:
        gates: BlockGates
        if way == "compiled":
            # On a CPU the same regions, without the minutes of a C++ compiler.
            backend = "inductor" if on_gpu else "eager"
            gates = stack.enter_context(compiled_gates(transformer, blocks, batch, backend))
        else:
            gates = stack.enter_context(block_gates(transformer, blocks))
        gates.set(torch.tensor([values] * batch, device=transformer.device))
        yield


def _set_scales(transformer: FluxTransformer2DModel, scale: Callable[[str], float]) -> None:
    for module, layer in transformer.named_modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale(ADAPTER_NAME, scale(module))


def decoding_s(vae: AutoencoderKL, channels: int, setting: Setting) -> float:
    """Return seconds of decoding one picture; `channels` are a token's."""
    packed = torch.zeros(1, setting.tokens, channels, device=vae.device)
    with torch.no_grad():
        return _median_s(lambda: decode_pictures(vae, packed, setting.size_px), setting.repeats)


def _median_s(work: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return median(taken[WARM_UP:])


def report(
    seconds: Mapping[str, float], decode_s: float, flop: int, setting: Setting, device: str
) -> str:
    """Return the table: a forward pass, a picture, and the set of 60."""
    lines = [
        f"{device}, {setting.size_px} x {setting.size_px}, {setting.steps} steps, bfloat16; "
        f"decoding {decode_s:.3f} s",
        "",
        "| way | s/forward and picture | TFLOP/s | s/picture | min/60 pictures |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, forward_s in seconds.items():
        picture_s = setting.steps * forward_s + decode_s
        lines.append(
            f"| {WAYS[way].format(batch=setting.batch)} | {forward_s:.4f} | "
            f"{flop / forward_s / TERA:.1f} | {picture_s:.2f} | {PICTURES * picture_s / 60:.1f} |"
        )
    whole = PICTURES * setting.steps * flop
    words = f"{flop / TERA:.1f} TFLOP a forward pass, {whole / TERA / 1000:.1f} PFLOP the set."
    return "\n".join([*lines, "", words])


def settings(tiny: bool, batch: int, steps: int) -> Setting:
    """Return the setting at FLUX.1's shape or at nano's."""
    if tiny:
        return Setting(64, 16, 2, steps, repeats=1, guidance=2.5)
    return Setting(768, 512, batch, steps, repeats=5, guidance=3.5)


def nano_vae(device: torch.device) -> AutoencoderKL:
    """Return nano's autoencoder without its weights."""
    path = ROOT / "data" / "nano-flux" / "vae" / "config.json"
    return AutoencoderKL.from_config(json.loads(path.read_text(encoding="utf-8"))).to(device).eval()


def main() -> None:
    """Time the ways and print the table; --flop counts alone, on any machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="nano's shape in place of FLUX.1's")
    parser.add_argument("--batch", type=int, default=4, help="pictures in render's batches")
    parser.add_argument("--steps", type=int, default=20, help="of a picture")
    parser.add_argument("--flop", action="store_true", help="count operations; time nothing")
    arguments = parser.parse_args()
    setting = settings(arguments.tiny, arguments.batch, arguments.steps)
    config = shape_of(arguments.tiny)
    flop = forward_flop(config, setting)
    if arguments.flop:
        sys.stdout.write(report({}, 0.0, flop, setting, "no device") + "\n")
        return
    device = configure_torch()
    transformer = random_transformer(config, recipe(arguments.tiny, RANK).model, device)
    modules = lora_modules(Architecture.from_config(transformer.config), "all")
    add_lora(transformer, modules, RANK, float(RANK), seed=0)
    transformer.requires_grad_(False)
    vae = nano_vae(device) if arguments.tiny else AutoencoderKL(**VAE).to(device).eval()
    decode_s = decoding_s(vae, config["in_channels"], setting)
    words = report(time_ways(transformer, setting), decode_s, flop, setting, machine()["device"])
    sys.stdout.write(words + "\n")


if __name__ == "__main__":
    main()
