"""How much GPU memory a training step needs, computed from the shapes alone.

    python -m benchmarks.memory                    the tables of docs/hardware.md
    python -m benchmarks.memory --write            put them there
    python -m benchmarks.memory params.yaml        the sum behind one params file

Nothing is estimated by rule of thumb: the very step that training takes (our LoRA forward, our
checkpointing) runs on tensors without contents (torch's FakeTensorMode), and every storage is
counted from its making to its end. The needed memory is the sum of

    weights      numbers of the base model x bytes of their format; int8 and fp8 have 1 byte and a
                 float32 scale per output row, nf4 half a byte, a byte per 64 numbers and a float32
                 per 16384; what is not quantised has 2 bytes (4 in float32)
    adapter      8 bytes a number: itself and its gradient, float32
    optimiser    its state, a function of the matrices' shapes (benchmarks/training_state.py)
    average      4 bytes a number where train.ema_decay keeps a moving average
    helper       a training adapter in float32, taken to have rank 16 on all layers
    step         the largest sum of all living activations and intermediate results in forward and
                 backward; or in drawing a sample picture, where the decoder needs more
    unpacked     what unpacked weights take: int8 and fp8 keep a layer's weight in bfloat16 for the
                 backward pass: of one block where blocks are recomputed, of all where not; nf4
                 unpacks the largest layer alone
    pictures     the autoencoder (float32) that draws the sample pictures
    context      1 GiB for CUDA's context, kernels and the allocator's gaps: assumed, not computed

Double and single blocks are each alike, so one and two of each are run and the rest is added up.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.flux import SHAPES, TRANSFORMER, VAE
from benchmarks.training_state import (
    FLOAT_BYTES,
    HELPER_RANK,
    STATE_BYTES,
    Kept,
    Shape,
    average_bytes,
    state_bytes,
)
from stages.adapters.attach import add_lora, lora_parameters
from stages.contracts.params import Params, load_params
from stages.families.architecture import Architecture, Targets, block_of, lora_modules
from stages.families.flow import predict_velocity
from stages.families.latents import TOKEN_PX, VAE_REDUCTION
from stages.families.loading import checkpoint_blocks
from stages.families.text import TextBatch
from stages.runtime.device import DTYPES
from stages.training.lora_forward import shorten_lora_forward

GIB: Final = 1 << 30
CONTEXT_BYTES: Final = 1 * GIB
ROOT: Final = Path(__file__).parents[1]
DOCUMENT: Final = ROOT / "docs" / "hardware.md"
MARKS: Final = ("<!-- memory: begin -->\n", "<!-- memory: end -->\n")
STATE_MARKS: Final = ("<!-- state: begin -->\n", "<!-- state: end -->\n")
RANKS: Final = (8, 16, 64)
SIZES_PX: Final = (512, 768, 1024)
DRAWN_PX: Final = 768
FORMATS: Final = ("none", "fp8", "int8", "nf4")
ADAPTER_BYTES: Final = 8
PLAIN: Final = Kept("adamw", average=False, helper=False)
BLOCK_BYTES: Final = MappingProxyType({"fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / 16384})
UNPACKED_BYTES: Final = 2


@dataclass(frozen=True)
class Step:
    """What decides a step's memory, the base model apart."""

    size_px: int
    batch: int
    text_tokens: int
    rank: int
    targets: Targets
    precision: str
    checkpointing: bool


@dataclass(frozen=True)
class Usage:
    """Bytes: the largest sum of living storages, and what the graph keeps after the forward.

    Parameters and their gradients apart.
    """

    peak: int
    kept: int


@dataclass(frozen=True)
class Need:
    """Bytes of each part of the needed memory."""

    weights: int
    adapter: int
    optimiser: int
    average: int
    helper: int
    step: int
    unpacked: int
    pictures: int
    context: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())


class Storages(TorchDispatchMode):
    """Counts the bytes of living storages that operations make; `own` ones are left out."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.living = self.peak = 0
        self._own = own
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._own:
            return
        self.living += size
        self.peak = max(self.peak, self.living)

        def forget(_: object) -> None:
            self.living -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)


def adapted_model(config: Mapping[str, Any], step: Step, device: str) -> FluxTransformer2DModel:
    """Return a transformer with an adapter as training puts it on, with weights on `device`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[step.precision])
    try:
        with torch.device(device):
            transformer = FluxTransformer2DModel(**config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    modules = lora_modules(Architecture.from_config(transformer.config), step.targets)
    add_lora(transformer, modules, step.rank, float(step.rank), seed=0)
    return transformer


def run_step(transformer: FluxTransformer2DModel, step: Step) -> Usage:
    """Return what a forward and a backward pass of `transformer` use, beside its parameters."""
    shorten_lora_forward(transformer)
    if step.checkpointing:
        checkpoint_blocks(transformer)
    side, config = step.size_px // TOKEN_PX, transformer.config
    dtype = DTYPES[step.precision]
    packed = torch.zeros(step.batch, side * side, config.in_channels)
    shape = (step.batch, step.text_tokens, config.joint_attention_dim)
    pooled = torch.zeros(step.batch, config.pooled_projection_dim, dtype=dtype)
    text = TextBatch(torch.zeros(shape, dtype=dtype), pooled)
    sigmas = torch.full((step.batch,), 0.5)
    own = {matrix.untyped_storage()._cdata for matrix in transformer.parameters()}
    for matrix in lora_parameters(transformer).values():
        matrix.grad = torch.zeros_like(matrix)
        own.add(matrix.grad.untyped_storage()._cdata)
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with Storages(own) as storages:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            velocity = predict_velocity(transformer, packed, sigmas, text, 1.0, (side, side))
            loss = (velocity.float() - packed).square().mean()
        kept_bytes = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        loss.backward()
    return Usage(storages.peak, kept_bytes)


@cache
def shallow_usage(config: tuple[tuple[str, Any], ...], step: Step) -> Usage:
    """Return what a step of a model without contents uses."""
    transformer = adapted_model(dict(config), step, "meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in transformer.modules():
            for name, old in module.named_parameters(recurse=False):
                fake = torch.empty(old.shape, dtype=old.dtype)
                setattr(module, name, nn.Parameter(fake, requires_grad=old.requires_grad))
        return run_step(transformer, step)


def step_usage(config: Mapping[str, Any], step: Step) -> Usage:
    """Return what a step of the whole model uses, from runs of one and two blocks of each kind."""
    doubles, singles = config["num_layers"], config["num_single_layers"]

    def shallow(doubles: int, singles: int) -> Usage:
        depth = {"num_layers": doubles, "num_single_layers": singles}
        return shallow_usage(tuple(sorted({**config, **depth}.items())), step)

    one_double, two_doubles = shallow(1, 0), shallow(2, 0)
    one_single, two_singles = shallow(0, 1), shallow(0, 2)
    double = two_doubles.kept - one_double.kept
    single = two_singles.kept - one_single.kept
    kept = one_double.kept + (doubles - 1) * double + singles * single
    # The largest sum is at the last single block, when everything that blocks keep is there, or,
    # since a double block is larger, at the last of these, when the single blocks are done with.
    at_single = one_single.peak + (singles - 1) * single + doubles * double
    at_double = one_double.peak + (doubles - 1) * double
    return Usage(max(at_double, at_single), kept)


@cache
def autoencoder_bytes() -> int:
    """Return the bytes of FLUX's autoencoder in float32."""
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE)
    numbers: int = sum(matrix.numel() for matrix in vae.parameters())
    return numbers * FLOAT_BYTES


@cache
def decoding_peak(size_px: int) -> int:
    """Return the bytes beside the weights while one square picture is decoded."""
    side = size_px // VAE_REDUCTION
    with FakeTensorMode(), torch.no_grad():
        vae = AutoencoderKL(**VAE)
        own = {matrix.untyped_storage()._cdata for matrix in vae.parameters()}
        with Storages(own) as storages:
            vae.decode(torch.zeros(1, VAE["latent_channels"], side, side))
    peak: int = storages.peak
    return peak


def need(
    config: Mapping[str, Any], step: Step, quantisation: str, drawn_px: int, kept: Kept = PLAIN
) -> Need:
    """Return the memory that training a model of `config` needs; samples are of `drawn_px`."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**config)
    numbers = sum(matrix.numel() for matrix in transformer.parameters())
    layers = {
        name: layer.weight
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and str(block_of(name)) != "base"
    }
    in_blocks = sum(weight.numel() for weight in layers.values())
    plain_bytes = DTYPES[step.precision].itemsize
    weights, unpacked = numbers * plain_bytes, 0
    if quantisation != "none":
        scales = sum(len(weight) for weight in layers.values()) * FLOAT_BYTES
        packed = in_blocks * BLOCK_BYTES[quantisation] + (scales if quantisation != "nf4" else 0)
        weights = (numbers - in_blocks) * plain_bytes + round(packed)
        block = sum(layers[name].numel() for name in layers if name.startswith("transformer_bl"))
        largest = max(weight.numel() for weight in layers.values())
        living = block // config["num_layers"] if step.checkpointing else in_blocks
        unpacked = (largest if quantisation == "nf4" else living) * UNPACKED_BYTES
    shapes = adapter_shapes(tuple(sorted(config.items())), step)
    helper = replace(step, rank=HELPER_RANK, targets="all")
    return Need(
        weights=weights,
        adapter=sum(rows * columns for rows, columns in shapes) * ADAPTER_BYTES,
        optimiser=state_bytes(kept.optimiser, shapes),
        average=average_bytes(shapes) if kept.average else 0,
        helper=average_bytes(adapter_shapes(tuple(sorted(config.items())), helper))
        if kept.helper
        else 0,
        step=max(step_usage(config, step).peak, decoding_peak(drawn_px)),
        unpacked=unpacked,
        pictures=autoencoder_bytes(),
        context=CONTEXT_BYTES,
    )


@cache
def adapter_shapes(config: tuple[tuple[str, Any], ...], step: Step) -> tuple[Shape, ...]:
    """Return the shapes of the adapter's matrices, as if no module shared its A."""
    transformer = adapted_model(dict(config), step, "meta")
    return tuple(tuple(matrix.shape) for matrix in lora_parameters(transformer).values())


def step_of(params: Params) -> Step:
    """Return the step that a params file asks for."""
    return Step(
        size_px=max(params.encode.sizes_px),
        batch=params.train.batch,
        text_tokens=params.model.text_tokens,
        rank=max([params.train.rank, *(phase.rank for phase in params.train.phases)]),
        targets=params.train.targets,
        precision=params.model.precision,
        checkpointing=params.train.gradient_checkpointing,
    )


def need_of(params: Params) -> Need:
    """Return the memory that a params file asks for; a base we do not know is taken for FLUX.1."""
    train = params.train
    kept = Kept(train.optimiser, train.ema_decay > 0, train.training_adapter is not None)
    config = SHAPES.get(params.fetch.repository, TRANSFORMER)
    step, drawn_px = step_of(params), params.sampling.size_px
    return need(config, step, params.model.quantisation, drawn_px, kept)


def table() -> str:
    """Return the Markdown table of FLUX.1 at rank 16, batch 1: GiB by size and format."""
    step = Step(512, 1, 512, 16, "all", "bfloat16", checkpointing=True)
    rows = ["| pixels | blocks recomputed | bf16 | fp8 | int8 | nf4 | of this, the step |"]
    rows.append("|---:|---|---:|---:|---:|---:|---:|")
    for checkpointing in (True, False):
        for size_px in SIZES_PX:
            case = replace(step, size_px=size_px, checkpointing=checkpointing)
            needs = [need(TRANSFORMER, case, quantisation, DRAWN_PX) for quantisation in FORMATS]
            totals = " | ".join(f"{each.total / GIB:.1f}" for each in needs)
            used = f"{needs[0].step / GIB:.1f}"
            rows.append(f"| {size_px} | {'yes' if checkpointing else 'no'} | {totals} | {used} |")
    return "\n".join(rows) + "\n"


def state_table() -> str:
    """Return the Markdown table of what is kept besides adapter and gradient: GiB by rank."""
    steps = [Step(512, 1, 512, rank, "all", "bfloat16", checkpointing=True) for rank in RANKS]
    shapes = [adapter_shapes(tuple(sorted(TRANSFORMER.items())), step) for step in steps]
    numbers = [sum(rows * columns for rows, columns in each) for each in shapes]
    rows = {name: [state_bytes(name, each) for each in shapes] for name in STATE_BYTES}
    rows["a moving average (`ema_decay`)"] = [average_bytes(each) for each in shapes]
    header = " | ".join(f"rank {rank}" for rank in RANKS)
    lines = [f"| | bytes a number | {header} |", f"|---|---:|{'---:|' * len(RANKS)}"]
    for name, sizes in rows.items():
        values = " | ".join(f"{size / GIB:.2f}" for size in sizes)
        lines.append(f"| {name} | {sizes[0] / numbers[0]:.2f} | {values} |")
    return "\n".join(lines) + "\n"


def breakdown(path: Path) -> str:
    """Return the sum behind one params file."""
    parts = need_of(load_params(path))
    lines = [f"{name:>10} {size / GIB:6.2f} GiB" for name, size in vars(parts).items()]
    return "\n".join([*lines, f"{'total':>10} {parts.total / GIB:6.2f} GiB"]) + "\n"


def main() -> None:
    """Print the tables or one sum, or write the tables into the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("params", nargs="?", type=Path)
    parser.add_argument("--write", action="store_true", help="update docs/hardware.md")
    arguments = parser.parse_args()
    if arguments.params:
        sys.stdout.write(breakdown(arguments.params))
    elif arguments.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        text = _between(_between(text, MARKS, table()), STATE_MARKS, state_table())
        DOCUMENT.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(f"{table()}\n{state_table()}")


def _between(text: str, marks: tuple[str, str], content: str) -> str:
    before, rest = text.split(marks[0])
    return before + marks[0] + content + marks[1] + rest.split(marks[1])[1]


if __name__ == "__main__":
    main()
