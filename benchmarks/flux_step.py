"""One measurement of a training step at a model's shape, in a process of its own.

    echo '{"size_px": 1024, ...}' | python -m benchmarks.flux_step [--tiny]

`benchmarks.flux_shape` starts it, sends a request when it is the process's turn, and reads one JSON
object. The step is stage train's own (stages.training.step), on pictures and texts of random
numbers and on weights that are made and quantised on the device, one block after the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

import torch
from diffusers import FluxTransformer2DModel
from diffusers.quantizers.bitsandbytes import utils as bitsandbytes_layers
from torch import nn

from benchmarks.flux import TRANSFORMER
from stages.adapters.attach import add_lora
from stages.contracts.params import ModelParams, Params, load_params
from stages.encoding.encoded import Encoded, Latents, Picture
from stages.families.architecture import Architecture, lora_modules
from stages.families.latents import latent_shape
from stages.families.loading import checkpoint_blocks
from stages.families.noise import keyed_normal
from stages.families.quantisation import quantisation_config, require_hardware
from stages.families.text import TextEmbedding
from stages.runtime.device import DTYPES, configure_torch
from stages.training.lora_forward import shorten_lora_forward
from stages.training.step import take_step
from stages.training.trainee import Trainee, make_trainee

ROOT: Final = Path(__file__).parents[1]
KIBIBYTE: Final = 1024
RATE_S: Final = 0.3  # of matrix products, for each shape


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    size_px: int
    quantisation: str
    checkpointing: bool
    compiled: bool


@dataclass(frozen=True)
class Measured:
    """What one case took: seconds of the first step and of a later one, and bytes.

    On CUDA the bytes are the largest that tensors had at once (`peak`), and that torch held for
    them (`reserved`); on a CPU both are the process's largest resident set.
    """

    first_s: float
    step_s: float
    peak_bytes: int
    reserved_bytes: int


def shape_of(tiny: bool) -> dict[str, Any]:
    """Return the transformer's config: FLUX.1's, or nano's."""
    if not tiny:
        return dict(TRANSFORMER)
    folder = ROOT / "data" / "nano-flux" / "transformer"
    whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values = {name: value for name, value in whole.items() if not name.startswith("_")}
    return {**values, "axes_dims_rope": tuple(values["axes_dims_rope"])}


def recipe(tiny: bool, rank: int) -> Params:
    """Return the preset of FLUX.1-dev or of nano, at batch 1 and a bfloat16 base."""
    name = "nano-flux" if tiny else "flux1-dev-24gb"
    params = load_params(ROOT / "presets" / f"{name}.yaml")
    train = {"rank": rank, "alpha": float(rank), "batch": 1, "accumulation": 1}
    return params.model_copy(
        update={
            "train": params.train.model_copy(update=train),
            "model": params.model.model_copy(update={"precision": "bfloat16"}),
        }
    )


def random_transformer(
    config: Mapping[str, Any], model: ModelParams, device: torch.device
) -> FluxTransformer2DModel:
    """Return a frozen transformer of random weights, quantised as `load_transformer` would.

    No more than one block is ever there in full precision beside what is done, and nothing is in
    main memory when `device` is a GPU.

    Raises:
        HardwareError: a package or the GPU that the format needs is missing.
    """
    require_hardware(model, device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[model.precision])
    try:
        with torch.device("meta"):
            transformer = FluxTransformer2DModel(**config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(0)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        _fill(block, model.quantisation, device, generator)
    _fill(transformer, "none", device, generator)
    transformer.is_loaded_in_4bit = model.quantisation == "nf4"  # for PEFT, as diffusers says it
    return transformer.requires_grad_(False)


def _fill(
    part: nn.Module, quantisation: str, device: torch.device, generator: torch.Generator
) -> None:
    """Give random values to all of `part` that has none, and quantise its Linear layers."""
    if quantisation == "nf4":
        config = quantisation_config(quantisation)
        bitsandbytes_layers.replace_with_bnb_linear(part, [], quantization_config=config)
    for module in part.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if empty.is_meta:
                value = torch.zeros(empty.shape, dtype=empty.dtype, device=device)
                if empty.dim() > 1:  # weights keep the size of what passes through
                    value.normal_(0, empty.shape[1] ** -0.5, generator=generator)
                elif name == "weight":  # of a norm
                    value.fill_(1)
                module.register_parameter(name, _parameter(value, empty))
    if quantisation in ("int8", "fp8"):
        # Imported where it is needed: torchao is optional.
        from torchao.quantization import quantize_

        quantize_(part, quantisation_config(quantisation).quant_type)


def _parameter(value: torch.Tensor, empty: nn.Parameter) -> nn.Parameter:
    """Return a parameter of `value`; of bitsandbytes' kind where `empty` is, packed on the way."""
    if type(empty) is nn.Parameter:
        return nn.Parameter(value, requires_grad=False)
    packed = type(empty)(value, requires_grad=False, **vars(empty))
    return cast(nn.Parameter, packed.to(value.device))


def random_data(config: Mapping[str, Any], size_px: int, text_tokens: int) -> Encoded:
    """Return two pictures of random latents and texts, as stage encode hands them over."""
    shape = latent_shape(Architecture.from_config(config), size_px)
    pictures = []
    for name in ("first", "second"):
        tokens = keyed_normal([text_tokens, config["joint_attention_dim"]], "tokens", name)
        pooled = keyed_normal([config["pooled_projection_dim"]], "pooled", name)
        latents = Latents(keyed_normal(shape, "latents", name), torch.full(shape, 0.1))
        pictures.append(Picture(name, name, latents, TextEmbedding(tokens, pooled), 1))
    empty = pictures[0].text
    return Encoded(tuple(pictures), tuple(pictures), empty, samples=(), plain=(), sha256="0" * 64)


def prepared(case: Case, params: Params, tiny: bool, device: torch.device) -> Trainee:
    """Return what stage train takes its steps with.

    Compiled blocks keep PEFT's own forward: torch.compile knows our short one, which does the same
    sum in fewer operations, by the identity of each layer's object, and would compile every block
    again until it gives up.
    """
    model = params.model.model_copy(update={"quantisation": case.quantisation})
    transformer = random_transformer(shape_of(tiny), model, device)
    train = params.train
    modules = lora_modules(Architecture.from_config(transformer.config), train.targets)
    add_lora(transformer, modules, train.rank, train.alpha, train.seed)
    if case.compiled:
        # A block that is not compiled after all would be a false number: let it be an error.
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        # Code for a GPU; on a CPU the same regions without the minutes of a C++ compiler.
        backend = "inductor" if device.type == "cuda" else "aot_eager"
        transformer.compile_repeated_blocks(backend=backend, dynamic=False)
    else:
        shorten_lora_forward(transformer)
    if case.checkpointing:
        checkpoint_blocks(transformer)
    return make_trainee(transformer, train)


def measure(case: Case, rank: int, steps: int, *, tiny: bool) -> Measured:
    """Return what `steps` training steps took, after two that do not count."""
    device = configure_torch()
    params = recipe(tiny, rank)
    trainee = prepared(case, params, tiny, device)
    data = random_data(trainee.transformer.config, case.size_px, params.model.text_tokens)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for step in range(1, steps + 3):
        start = time.perf_counter()
        take_step(trainee, data, params.train, step)
        _finish(device)
        times.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    else:
        peak = reserved = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
    return Measured(times[0], median(times[2:]), peak, reserved)


def matmul_rate(shapes: Mapping[tuple[int, int, int], int]) -> float:
    """Return FLOP a second of bfloat16 products [M, K] x [K, N] that come as often as `shapes` say.

    Each shape is repeated for a fixed time; the rate is all FLOP over all seconds, both weighted by
    how often the shape comes.
    """
    device = configure_torch()
    flop = seconds = 0.0
    for (rows, inner, columns), count in shapes.items():
        left = torch.randn(rows, inner, dtype=torch.bfloat16, device=device)
        right = torch.randn(columns, inner, dtype=torch.bfloat16, device=device)
        flop += count * 2 * rows * inner * columns
        seconds += count * _product_s(left, right, device)
    return flop / seconds


def _product_s(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    """Return the seconds of one `left` x `right`.T, as a Linear layer computes it."""
    repeats = 1
    for _ in range(3):  # libraries start, and choose their kernels
        nn.functional.linear(left, right)
    _finish(device)
    while True:
        start = time.perf_counter()
        for _ in range(repeats):
            nn.functional.linear(left, right)
        _finish(device)
        elapsed = time.perf_counter() - start
        if elapsed > RATE_S:
            return elapsed / repeats
        repeats *= 2


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine() -> dict[str, str]:
    """Return what the numbers depend on, beside the code."""
    device = configure_torch()
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    name = f"{card.name}, {card.total_memory / 2**30:.0f} GiB" if card else "CPU"
    return {"device": name, "torch": torch.__version__}


def main() -> None:
    """Wait for a request on standard input, and answer it on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="nano's shape in place of FLUX.1's")
    tiny = parser.parse_args().tiny
    request = json.loads(sys.stdin.readline())
    answer: dict[str, Any]
    if "shapes" in request:
        rates = {
            size_px: matmul_rate({tuple(shape): count for shape, count in shapes})
            for size_px, shapes in request["shapes"].items()
        }
        answer = {"machine": machine(), "flop_per_s": rates}
    else:
        case = Case(**request["case"])
        answer = asdict(measure(case, request["rank"], request["steps"], tiny=tiny))
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
