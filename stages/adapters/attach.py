"""An adapter on a model, through PEFT: put on for training or for pictures, read back, taken off.

PEFT is told whole names (see patterns.py), and the layers it found are compared with those asked
for.

The adapter is float32 also where the base is bfloat16: PEFT would cast it to the base's dtype.
PEFT's layer then casts its input to float32, adds the two results in float32 and casts the sum
back (peft, src/peft/tuners/lora/layer.py, Linear.forward). LoKr and DoRA stand in the same layers:
modules of ours take the places of A and B, so that gates scale their whole Delta W.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from stages.adapters.compatibility import linear_shapes, require_fit, require_modules
from stages.adapters.dora import DoraDown, DoraPair, DoraUp
from stages.adapters.keys import Key, format_key
from stages.adapters.kronecker import KroneckerDown, KroneckerPair, KroneckerUp
from stages.adapters.listing import list_names
from stages.adapters.module import Adapter, Change
from stages.adapters.pair import LoraPair
from stages.adapters.patterns import exact_config
from stages.contracts.errors import AdapterError, Problem
from stages.families.noise import keyed_generator

ADAPTER_NAME: Final = "default"
"""PEFT's name for the one adapter that a transformer of ours carries."""

_KAIMING_SLOPE: Final = math.sqrt(5)  # LoRA's reference code and PEFT: kaiming_uniform_(a=sqrt(5))


@dataclass(frozen=True)
class LoraShape:
    """What a module's new LoRA is like.

    `down_of` is the module whose A this one has, itself or one of the same input and rank: then
    there is one A, and its gradient is the sum over all that have it.
    """

    rank: int
    alpha: float
    down_of: str


def add_lora(
    transformer: FluxTransformer2DModel,
    modules: Sequence[str],
    rank: int,
    alpha: float,
    seed: int,
) -> None:
    """Put a new, trainable float32 LoRA of one rank and alpha on exactly `modules`.

    Raises:
        AdapterError: the model lacks some of the modules.
        ValueError: there is no module, one is named twice, or the model carries an adapter.
    """
    if len(set(modules)) != len(modules):
        raise ValueError("modules must be named, and each only once")
    add_shaped_lora(
        transformer, {module: LoraShape(rank, alpha, module) for module in modules}, seed
    )


def add_shaped_lora(
    transformer: FluxTransformer2DModel, loras: Mapping[str, LoraShape], seed: int
) -> None:
    """Put a new, trainable float32 LoRA on exactly the modules of `loras`; the base is frozen.

    A is Kaiming-uniform, drawn from a stream of (seed, name of the module it belongs to), so it
    depends on no other module; B is zero, so that the model's output does not change.

    Raises:
        AdapterError: the model lacks some of the modules.
        ValueError: there is no module, the model carries an adapter, or modules of unequal rank or
            input are to have one A.
    """
    shapes = _free_shapes(transformer)
    if not loras:
        raise ValueError("modules must be named, and each only once")
    require_modules({*loras, *(lora.down_of for lora in loras.values())}, shapes)
    downs: dict[str, torch.Tensor] = {}
    pairs = {}
    for module, lora in loras.items():
        rows, columns = shapes[module]
        if lora.down_of not in downs:
            downs[lora.down_of] = draw_down(lora.rank, columns, seed, "lora", lora.down_of)
        if downs[lora.down_of].shape != (lora.rank, columns):
            raise ValueError(f"{module} cannot have the A of {lora.down_of}: other rank or input")
        pairs[module] = LoraPair(downs[lora.down_of], torch.zeros(rows, lora.rank), lora.alpha)
    _inject(transformer, pairs, {})
    for parameter in lora_parameters(transformer).values():
        parameter.requires_grad_(True)
    _share_downs(transformer, loras)


def draw_down(rank: int, columns: int, *key: int | str) -> torch.Tensor:
    """Return a new A [rank, columns], Kaiming-uniform, from the stream of `key`.

    The range depends on the columns alone, so that rows drawn later are like the first ones.
    """
    down = torch.empty(rank, columns)
    generator = keyed_generator(*key)
    nn.init.kaiming_uniform_(down, a=_KAIMING_SLOPE, generator=generator)
    return down


def attach_adapter(transformer: FluxTransformer2DModel, adapter: Adapter) -> None:
    """Put an adapter on the model for inference: frozen, float32, with its own alphas.

    Raises:
        AdapterError: the adapter has modules that the model lacks, or other shapes; or it is DoRA
            and the model's weights are quantised.
        ValueError: the adapter is empty, or the model carries one already.
    """
    shapes = _free_shapes(transformer)
    if not adapter.modules:
        raise ValueError("the adapter has no modules")
    require_fit(adapter, shapes)
    gains = _dora_gains(transformer, adapter)
    _inject(transformer, adapter.modules, gains)


def lora_layers(transformer: FluxTransformer2DModel) -> dict[str, LoraLayer]:
    """Return PEFT's layer of every module that carries the adapter, in model order.

    Its matrices are `layer.lora_A[ADAPTER_NAME]` and `layer.lora_B[ADAPTER_NAME]`.
    """
    return {
        name: layer for name, layer in transformer.named_modules() if isinstance(layer, LoraLayer)
    }


def lora_parameters(transformer: FluxTransformer2DModel) -> dict[str, nn.Parameter]:
    """Return the adapter's matrices under the names they have in a file, in model order.

    One that several modules have stands here once, under the first module's name.
    """
    names: dict[nn.Parameter, str] = {}
    for module, layer in lora_layers(transformer).items():
        names.setdefault(layer.lora_A[ADAPTER_NAME].weight, format_key(Key(module, "down")))
        names.setdefault(layer.lora_B[ADAPTER_NAME].weight, format_key(Key(module, "up")))
    return {name: parameter for parameter, name in names.items()}


def extract_adapter(transformer: FluxTransformer2DModel, metadata: Mapping[str, str]) -> Adapter:
    """Return a copy of the adapter that the model carries, float32 on the CPU, with `metadata`."""
    modules = {
        module: LoraPair(
            _copy(layer.lora_A[ADAPTER_NAME].weight),
            _copy(layer.lora_B[ADAPTER_NAME].weight),
            float(layer.lora_alpha[ADAPTER_NAME]),
        )
        for module, layer in lora_layers(transformer).items()
    }
    return Adapter(modules, dict(metadata))


def detach(transformer: FluxTransformer2DModel) -> None:
    """Take the adapter off; the model is the base again, in the same tensors."""
    transformer.unload_lora()


def _free_shapes(transformer: FluxTransformer2DModel) -> dict[str, tuple[int, int]]:
    if lora_layers(transformer):
        raise ValueError("the transformer carries an adapter already; call detach first")
    return linear_shapes(transformer)


def _inject(
    transformer: FluxTransformer2DModel,
    changes: Mapping[str, Change],
    gains: Mapping[str, torch.Tensor],
) -> None:
    # low_cpu_mem_usage leaves PEFT's own matrices without storage: no draw from torch's global
    # generator, no cast to the base's dtype. Ours take their place below.
    config = LoraConfig(lora_dropout=0.0, **exact_config(changes))
    inject_adapter_in_model(config, transformer, ADAPTER_NAME, low_cpu_mem_usage=True)
    layers = lora_layers(transformer)
    if layers.keys() != changes.keys():
        detach(transformer)
        raise RuntimeError(f"PEFT put LoRA on {len(layers)} layers instead of {len(changes)}")
    device = transformer.device  # with offload a layer's own weight waits in main memory
    for module, layer in layers.items():
        match changes[module]:
            case LoraPair() as pair:
                for matrices, value in ((layer.lora_A, pair.down), (layer.lora_B, pair.up)):
                    copy = _moved(value, device)
                    matrices[ADAPTER_NAME].weight = nn.Parameter(copy, requires_grad=False)
            case KroneckerPair() as pair:
                left, right = _moved(pair.left, device), _moved(pair.right, device)
                layer.lora_A[ADAPTER_NAME] = KroneckerDown(right)
                layer.lora_B[ADAPTER_NAME] = KroneckerUp(left, pair.spans)
            case DoraPair() as dora:
                gain = _moved(gains[module], device)
                down, up = (_moved(each, device) for each in (dora.pair.down, dora.pair.up))
                layer.lora_A[ADAPTER_NAME] = DoraDown(down, layer.get_base_layer(), gain)
                layer.lora_B[ADAPTER_NAME] = DoraUp(dora.pair.scale * up, gain)
        layer.train(transformer.training)


def _dora_gains(transformer: FluxTransformer2DModel, adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return g of every DoRA module; it is made of the base weights."""
    doras = {
        name: change for name, change in adapter.modules.items() if isinstance(change, DoraPair)
    }
    weights = {name: transformer.get_submodule(name).weight for name in doras}
    quantised = [
        name
        for name, weight in weights.items()
        if type(weight.data) is not torch.Tensor or not weight.is_floating_point()
    ]
    if quantised:
        what = f"DoRA needs the base weights of {list_names(quantised)}, which are quantised"
        problem = Problem("model.quantisation", what, "Set it to none, or use a plain LoRA.")
        raise AdapterError("The adapter cannot be put on this model", [problem])
    return {name: doras[name].gain(weight.detach()) for name, weight in weights.items()}


def _moved(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    return value.detach().to(device, torch.float32, copy=True)


def _share_downs(transformer: FluxTransformer2DModel, loras: Mapping[str, LoraShape]) -> None:
    """Let modules of one A hold one parameter instead of equal ones."""
    layers = lora_layers(transformer)
    downs: dict[str, nn.Parameter] = {}
    for module, layer in layers.items():
        matrix = layer.lora_A[ADAPTER_NAME]
        matrix.weight = downs.setdefault(loras[module].down_of, matrix.weight)


def _copy(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.detach().to("cpu", torch.float32, copy=True)
