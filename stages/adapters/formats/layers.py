"""Which Linear layers of ours a name in a LoRA file means, and which rows of it each one has.

Two vocabularies name FLUX's layers: diffusers' own, and Black Forest Labs'
(stages/families/original_names.py), where query, key and value are one layer, linear1 of a single
block holds the MLP's first one too, and the final modulation is (shift, scale) where diffusers
has (scale, shift). XLabs adds two of its own, which hang on attention processors. Tools that write
`_` for `.` use the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from stages.adapters.kronecker import Span
from stages.families.original_names import (
    BASE_LAYERS,
    DOUBLE_LAYERS,
    GUIDANCE_LAYERS,
    SINGLE_LAYERS,
)

Vocabulary = Literal["diffusers", "original", "xlabs"]

SWAPPED_MODULE: Final = "norm_out.linear"
"""The layer whose halves diffusers and Black Forest Labs hold in opposite order."""

_QKV: Final = 3
_QKV_AND_MLP: Final = 4

_Words = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Layer:
    """A Linear layer as a file names it, with `.` between words, and ours that hold its rows."""

    name: str
    modules: tuple[str, ...]
    swapped: bool


def _same(words: _Words) -> _Words:
    return {part: (part,) for parts in words.values() for part in parts}


# XLabs-AI/x-flux, src/flux/modules/layers.py: 1 is the picture's stream, 2 the text's.
_XLABS_DOUBLE: Final = {
    "processor.qkv_lora1": DOUBLE_LAYERS["img_attn.qkv"],
    "processor.qkv_lora2": DOUBLE_LAYERS["txt_attn.qkv"],
    "processor.proj_lora1": DOUBLE_LAYERS["img_attn.proj"],
    "processor.proj_lora2": DOUBLE_LAYERS["txt_attn.proj"],
}
_XLABS_SINGLE: Final = {
    "processor.qkv_lora": SINGLE_LAYERS["linear1"][:_QKV],
    "processor.proj_lora": SINGLE_LAYERS["linear2"],
}
_ORIGINAL_BASE: Final = BASE_LAYERS | GUIDANCE_LAYERS
_ORIGINAL_STACKS: Final = ("double_blocks", "single_blocks")
_DIFFUSERS_STACKS: Final = ("transformer_blocks", "single_transformer_blocks")
_WORDS: Final[dict[Vocabulary, tuple[tuple[str, str], _Words, _Words, _Words]]] = {
    "diffusers": (
        _DIFFUSERS_STACKS,
        _same(_ORIGINAL_BASE),
        _same(DOUBLE_LAYERS),
        _same(SINGLE_LAYERS),
    ),
    "original": (_ORIGINAL_STACKS, _ORIGINAL_BASE, DOUBLE_LAYERS, SINGLE_LAYERS),
    "xlabs": (_ORIGINAL_STACKS, {}, _XLABS_DOUBLE, _XLABS_SINGLE),
}


def find_layer(name: str, vocabulary: Vocabulary, joiner: str) -> Layer | None:
    """Return the layer called `name`, or None where no FLUX transformer has one.

    Args:
        name: the layer's whole name without prefix and part, such as `double_blocks_7_img_mlp_0`.
        vocabulary: whose words it is in.
        joiner: what stands between words, `.` or `_`.
    """
    stacks, *_ = _WORDS[vocabulary]
    pattern = rf"({'|'.join(stacks)})\{joiner}(0|[1-9]\d*)\{joiner}(.+)"
    match = re.fullmatch(pattern, name)
    if match is None:
        return _find(name, vocabulary, joiner, 0, "", "")
    stack = stacks.index(match[1])
    theirs = f"{match[1]}.{match[2]}."
    ours = f"{_DIFFUSERS_STACKS[stack]}.{match[2]}."
    return _find(match[3], vocabulary, joiner, stack + 1, theirs, ours)


def _find(
    words: str, vocabulary: Vocabulary, joiner: str, table: int, theirs: str, ours: str
) -> Layer | None:
    _, *tables = _WORDS[vocabulary]
    for name, parts in tables[table].items():
        if name.replace(".", joiner) == words:
            swapped = vocabulary == "original" and parts == (SWAPPED_MODULE,)
            return Layer(theirs + name, tuple(ours + part for part in parts), swapped)
    return None


def original_layer(module: str) -> Layer:
    """Return Black Forest Labs' layer that holds the rows of our `module`.

    Raises:
        ValueError: no FLUX transformer has such a module.
    """
    match = re.fullmatch(r"(single_)?(?:transformer_blocks)\.(\d+)\.(.+)", module)
    table: _Words = _ORIGINAL_BASE
    theirs = ours = ""
    if match is not None:
        table = SINGLE_LAYERS if match[1] else DOUBLE_LAYERS
        theirs = f"{_ORIGINAL_STACKS[bool(match[1])]}.{match[2]}."
        ours = f"{_DIFFUSERS_STACKS[bool(match[1])]}.{match[2]}."
    for name, parts in table.items():
        if module.removeprefix(ours) in parts:
            modules = tuple(ours + part for part in parts)
            return Layer(theirs + name, modules, parts == (SWAPPED_MODULE,))
    raise ValueError(f"no FLUX transformer has a Linear layer called {module!r}")


def layer_rows(layer: Layer, shape: tuple[int, int]) -> dict[str, tuple[Span, ...]] | None:
    """Return the rows that each module of ours takes from `layer` of shape (out, in), in order.

    Query, key and value are as wide as their input; what is left of linear1 is the MLP's. None
    where the shape cannot be divided so.
    """
    rows, columns = shape
    count = len(layer.modules)
    if layer.swapped:
        return {layer.modules[0]: ((rows // 2, rows), (0, rows // 2))} if rows % 2 == 0 else None
    if count == 1:
        return {layer.modules[0]: ((0, rows),)}
    wide = _QKV * columns
    if (count == _QKV and rows != wide) or (count == _QKV_AND_MLP and rows <= wide):
        return None
    edges = [index * columns for index in range(count)] + [rows]
    return {
        module: ((start, stop),)
        for module, start, stop in zip(layer.modules, edges, edges[1:], strict=False)
    }
