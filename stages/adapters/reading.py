"""From a file's tensors to layers, each name understood and each number usable, or one message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch

from stages.adapters.container import read_container
from stages.adapters.formats.assemble import Source, source_problems, source_shape
from stages.adapters.formats.foreign import TEXT_ENCODER, name_problems
from stages.adapters.formats.layers import Layer
from stages.adapters.formats.names import read_name
from stages.adapters.listing import list_names
from stages.adapters.scales import CONFIG_FIELD, number_problems, read_alphas
from stages.contracts.errors import AdapterError, Problem

_PEFT_CONFIG: Final = "adapter_config.json"
_NO_CONFIG: Final = (
    f"the names are PEFT's, which keeps alpha in {_PEFT_CONFIG}; it is not beside the file, so "
    "alpha is taken to be the rank"
)
_UNWATCHED: Final = f"its scale stands in {_PEFT_CONFIG} beside it, which DVC does not watch"
_CONVERT: Final = "Run `python -m stages.split to-diffusers {} OUT`, which reads it, and name OUT."
_DTYPES: Final = frozenset({torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA file, understood: every tensor is in one of `sources` or in `apart`.

    `alphas` are by the sources' layer names; a layer that states none is not in it. `spellings`
    counts tensors by the way their names are written. `assumed` is what had to be guessed.
    """

    sources: tuple[Source, ...]
    alphas: Mapping[str, float]
    apart: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]
    spellings: Mapping[str, int]
    assumed: str


@dataclass
class _Sorting:
    """The tensors of a file while they are sorted."""

    parts: dict[Layer, dict[str, torch.Tensor]] = field(default_factory=dict)
    named: dict[Layer, dict[str, str]] = field(default_factory=dict)
    apart: dict[str, torch.Tensor] = field(default_factory=dict)
    spellings: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Put one tensor where it belongs."""
        if TEXT_ENCODER.fullmatch(name):
            self.apart[name] = tensor
            return
        read = read_name(name)
        if read is None:
            self.left.append(name)
            return
        self.spellings[read.spelling.title] += 1
        named = self.named.setdefault(read.layer, {})
        if read.part in named:
            self.twice += [named[read.part], name]
        named[read.part] = name
        self.parts.setdefault(read.layer, {})[read.part] = tensor

    def sources(self) -> list[Source]:
        """Return the layers, in order of their names."""
        return [
            Source(
                layer,
                self.parts[layer],
                {name: self.parts[layer][part] for part, name in self.named[layer].items()},
            )
            for layer in sorted(self.parts, key=lambda layer: (layer.name, layer.modules))
        ]


def read_file(path: Path, beside: bool = False) -> LoraFile:
    """Return the layers in a safetensors file.

    PEFT keeps alpha in adapter_config.json beside the file. A stage reads what DVC watches, which
    that is not: with `beside` it is read, without it must say nothing that changes the scale.

    Raises:
        AdapterError: the file cannot be read, or its content is no LoRA of a FLUX transformer; all
            problems at once.
    """
    container = read_container(path)
    where = str(path)
    sorting = _Sorting()
    for name in sorted(container.tensors):
        sorting.add(name, container.tensors[name])
    sources = sorting.sources()
    problems = name_problems(where, sorting.left, container.metadata)
    problems += _whole_problems(where, sorting, sources)
    problems += source_problems(where, sources)
    problems += _value_problems(where, sources)
    alphas, alpha_problems = _read_alphas(sources, container.metadata)
    assumed = ""
    if _may_have_config(sorting, sources, container.metadata):
        config = path.with_name(_PEFT_CONFIG)
        if config.is_file():
            text = config.read_text(encoding="utf-8")
            found, alpha_problems = _read_alphas(sources, {CONFIG_FIELD: text})
            if found != alphas and not beside and not alpha_problems:
                problems.append(Problem(where, _UNWATCHED, _CONVERT.format(path)))
            alphas = found
        else:
            assumed = _NO_CONFIG
    problems += [replace(each, where=f"{where}, {each.where}") for each in alpha_problems]
    if problems:
        raise AdapterError("The adapter cannot be used", problems)
    spellings = dict(sorting.spellings)
    return LoraFile(tuple(sources), alphas, sorting.apart, container.metadata, spellings, assumed)


def _may_have_config(sorting: _Sorting, sources: list[Source], metadata: Mapping[str, str]) -> bool:
    """Return whether the names are PEFT's own and nothing in the file states a scale."""
    peft = any(title.startswith("PEFT") for title in sorting.spellings)
    stated = CONFIG_FIELD in metadata or any("alpha" in source.parts for source in sources)
    return peft and not stated


def _whole_problems(where: str, sorting: _Sorting, sources: list[Source]) -> list[Problem]:
    """Return what is wrong with the file as a whole: nothing in it, or something twice."""
    problems = []
    if sorting.twice:
        remedy = "Keep one of each: several spellings of a layer are one."
        problems.append(Problem(where, f"has keys twice: {list_names(sorting.twice)}", remedy))
    counts = Counter(module for source in sources for module in source.layer.modules)
    if twice := [module for module, count in counts.items() if count > 1]:
        remedy = "A fused layer and one that is part of it cannot both count: keep one of them."
        problems.append(Problem(where, f"changes layers twice: {list_names(twice)}", remedy))
    if not sources and not sorting.left:
        what = "holds no tensors"
        if sorting.apart:
            what = f"holds text-encoder keys alone: {list_names(list(sorting.apart))}"
        problems.append(Problem(where, what, "Name a LoRA file of a FLUX transformer."))
    return problems


def _read_alphas(
    sources: list[Source], metadata: Mapping[str, str]
) -> tuple[dict[str, float], list[Problem]]:
    """Return the alpha of each layer that has one, and what is wrong with how they are stated.

    LoHa and LoKr state it in tensors alone; the header's config speaks of LoRA.
    """
    stated: dict[str, torch.Tensor] = {}
    products: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    decomposed = set()
    for source in sources:
        alpha = source.parts.get("alpha")
        if source.kind in ("LoHa", "LoKr"):
            products |= {source.layer.name: alpha} if alpha is not None else {}
            continue
        for module in source.layer.modules:
            stated |= {module: alpha} if alpha is not None else {}
            if source.kind is not None and source_shape(source) is not None:
                ranks[module] = len(source.parts["down"])
            if source.kind == "DoRA":
                decomposed.add(module)
    alphas, problems = read_alphas(stated, metadata, ranks, decomposed) if ranks else ({}, [])
    problems += number_problems(products)
    if problems:
        return {}, problems
    by_layer = {
        source.layer.name: alphas[source.layer.modules[0]]
        for source in sources
        if source.layer.modules[0] in alphas
    }
    return by_layer | {name: float(alpha.item()) for name, alpha in products.items()}, []


def _value_problems(where: str, sources: list[Source]) -> list[Problem]:
    """Return what is wrong with numbers: formats that we do not read, NaN and infinity."""
    alphas = {id(source.parts["alpha"]) for source in sources if "alpha" in source.parts}
    tensors = {
        name: tensor
        for source in sources
        for name, tensor in source.tensors.items()
        if id(tensor) not in alphas
    }
    odd = {
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in tensors.items()
        if tensor.dtype not in _DTYPES
    }
    broken = {
        name
        for name, tensor in tensors.items()
        if tensor.dtype in _DTYPES and not torch.isfinite(tensor).all()
    }
    problems = []
    if odd:
        remedy = "Save the adapter in float32, float16 or bfloat16."
        problems.append(Problem(where, f"unreadable number formats: {list_names(odd)}", remedy))
    if broken:
        remedy = "Training diverged: take an earlier checkpoint, or train at a lower learning rate."
        problems.append(Problem(where, f"NaN or infinity in: {list_names(broken)}", remedy))
    return problems
