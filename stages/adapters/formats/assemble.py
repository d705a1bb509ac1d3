"""From the tensors of a layer in a file to the changes of our layers.

LoRA: Delta W = (alpha / rank) B A. LoHa: (alpha / rank) (B1 A1) * (B2 A2). LoKr: W1 ⊗ W2, where
either may be a product of two; alpha counts only where one is. DoRA: LoRA with a magnitude. Sources
as in names.py. A fused layer's B is cut by rows and its A shared, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch

from stages.adapters.dora import DoraPair
from stages.adapters.formats.layers import Layer, layer_rows
from stages.adapters.kronecker import KroneckerPair, Span, take_rows
from stages.adapters.listing import list_names
from stages.adapters.module import Change
from stages.adapters.pair import Kind, LoraPair, Origin, hadamard_factors
from stages.contracts.errors import Problem

_MATRIX_AXES: Final = 2
_LORA: Final = frozenset({"down", "up"})
_FORMS: Final[tuple[tuple[Kind, frozenset[str]], ...]] = (
    ("LoRA", _LORA),
    ("DoRA", _LORA | {"magnitude"}),
    ("LoHa", frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})),
    *(
        ("LoKr", frozenset({*one, *other}))
        for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for other in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
)
"""Kinds of change, and the parts that make one, alpha apart."""

_Parts = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Source:
    """A layer in a file: its tensors by part, and the same under their own names."""

    layer: Layer
    parts: _Parts
    tensors: _Parts

    @property
    def kind(self) -> Kind | None:
        """What it is, or None where parts are missing or too many."""
        present = self.parts.keys() - {"alpha"}
        return next((kind for kind, parts in _FORMS if present == parts), None)


def assemble(source: Source, alpha: float | None) -> dict[str, Change]:
    """Return the change of each module of ours that `source` has rows of, float32.

    Args:
        source: without problems (`source_problems`).
        alpha: None where the file states none.

    Raises:
        ValueError: the source has problems.
    """
    shape = source_shape(source)
    rows = layer_rows(source.layer, shape) if shape else None
    if rows is None or source.kind is None:
        raise ValueError(f"{source.layer.name} has problems")
    parts = {part: tensor.float() for part, tensor in source.parts.items() if part != "alpha"}
    origin = Origin(source.layer.name, source.kind, source.tensors)
    whole = _MAKERS[source.kind](parts, alpha, origin)
    cut = {module: _cut(whole, spans) for module, spans in rows.items()}
    if len(cut) == 1:
        return cut
    return {
        module: _without_foreign_ranks(change) if isinstance(change, LoraPair) else change
        for module, change in cut.items()
    }


def _cut(whole: Change, spans: tuple[Span, ...]) -> Change:
    """Return the rows of a change that one module of ours has."""
    match whole:
        case KroneckerPair():
            return replace(whole, spans=spans)
        case DoraPair():
            by_rows = whole.magnitude.shape[1] == 1
            magnitude = take_rows(whole.magnitude, spans) if by_rows else whole.magnitude
            pair = replace(whole.pair, up=take_rows(whole.pair.up, spans))
            return replace(whole, pair=pair, magnitude=magnitude)
        case LoraPair():
            return replace(whole, up=take_rows(whole.up, spans))


def _without_foreign_ranks(pair: LoraPair) -> LoraPair:
    """Return the pair without ranks whose column of B is zero; Delta W is the same numbers.

    A fused layer may be several LoRAs side by side, B block-diagonal (kohya_file.py): then the
    others' ranks do nothing in the rows of this one. A pair that is zero altogether stays.
    """
    used = pair.up.ne(0).any(dim=0)
    if pair.origin is not None or bool(used.all()) or not bool(used.any()):
        return pair
    return LoraPair(pair.down[used], pair.up[:, used], pair.scale * int(used.sum()))


def source_problems(where: str, sources: list[Source]) -> list[Problem]:
    """Return what is wrong between the parts of each layer: partners and shapes."""
    found: dict[str, list[str]] = {}
    for source in sources:
        what, name = _what_is_wrong(source)
        if what:
            found.setdefault(what, []).append(name)
    return [
        Problem(where, f"{what}: {list_names(names)}", _REMEDIES.get(what, _INCOMPLETE))
        for what, names in found.items()
    ]


_INCOMPLETE: Final = "Each module needs all its matrices; the file is incomplete, get it again."
_UNEQUAL: Final = "rank mismatch"
_UNDIVIDED: Final = "rows do not divide"
_ODD_MAGNITUDE: Final = "DoRA magnitude of an unreadable shape"
_REMEDIES: Final = {
    _UNEQUAL: "A must be [rank, in] and B [out, rank] with one rank.",
    _UNDIVIDED: "A fused layer has as many rows for query, key and value each as it has columns; "
    "is this a LoRA for another model?",
    _ODD_MAGNITUDE: "It is [out] or [out, 1] (norm of rows); [1, in] (norm of columns) is read "
    "where the layer is one layer in diffusers, too: not for fused query, key and value.",
}


def _what_is_wrong(source: Source) -> tuple[str, str]:
    """Return the kind of problem and the place, or two empty texts."""
    name, present = source.layer.name, source.parts.keys() - {"alpha"}
    if source.kind is None:
        if not present:
            return "alpha without matrices", name
        wide = {"magnitude", "down", "up"}
        if present <= wide:
            lacking = sorted(_LORA - present)
            has = {"down": "lora_A", "up": "lora_B", "magnitude": "DoRA magnitude"}
            first = next(part for part in ("down", "up", "magnitude") if part in present)
            return f"{has[first]} without {' and '.join(has[each] for each in lacking)}", name
        return "parts that make no LoRA", f"{name} ({', '.join(sorted(present))})"
    shape = source_shape(source)
    if shape is None:
        shown = {"down": "A", "up": "B"}
        sizes = (f"{shown.get(part, part)} {list(source.parts[part].shape)}" for part in present)
        return _UNEQUAL, f"{name} ({', '.join(sorted(sizes))})"
    if layer_rows(source.layer, shape) is None:
        return _UNDIVIDED, f"{name} {list(shape)}"
    if source.kind == "DoRA" and not _has_usable_magnitude(source, shape):
        return _ODD_MAGNITUDE, f"{name} {list(source.parts['magnitude'].shape)}"
    return "", ""


def source_shape(source: Source) -> tuple[int, int] | None:
    """Return (out, in) of Delta W, or None where the parts do not fit each other."""
    parts = source.parts
    if any(
        tensor.ndim != _MATRIX_AXES or tensor.numel() == 0
        for part, tensor in parts.items()
        if part not in ("alpha", "magnitude")
    ):
        return None
    match source.kind:
        case "LoRA" | "DoRA":
            return _product_shape(parts["up"], parts["down"])
        case "LoHa":
            one = _product_shape(parts["hada_w1_a"], parts["hada_w1_b"])
            other = _product_shape(parts["hada_w2_a"], parts["hada_w2_b"])
            return one if one == other else None
        case _:
            factors = [_factor_shape(parts, which) for which in ("lokr_w1", "lokr_w2")]
            left, right = factors
            return (left[0] * right[0], left[1] * right[1]) if left and right else None


def _product_shape(up: torch.Tensor, down: torch.Tensor) -> tuple[int, int] | None:
    return (up.shape[0], down.shape[1]) if up.shape[1] == down.shape[0] else None


def _factor_shape(parts: _Parts, which: str) -> tuple[int, int] | None:
    if which in parts:
        rows, columns = parts[which].shape
        return (rows, columns)
    return _product_shape(parts[f"{which}_a"], parts[f"{which}_b"])


def _has_usable_magnitude(source: Source, shape: tuple[int, int]) -> bool:
    """Return whether the magnitude is of rows, or of columns that are those of one layer of ours.

    A fused layer's columns are normed over all its rows, which are several layers of ours.
    """
    rows, columns = shape
    sizes = tuple(source.parts["magnitude"].shape)
    of_columns = sizes == (1, columns) and len(source.layer.modules) == 1
    return sizes in ((rows,), (rows, 1)) or of_columns


def _lora(parts: _Parts, alpha: float | None, _origin: Origin) -> LoraPair:
    down, up = parts["down"], parts["up"]
    return LoraPair(down, up, float(len(down)) if alpha is None else alpha)


def _dora(parts: _Parts, alpha: float | None, origin: Origin) -> DoraPair:
    magnitude = parts["magnitude"]
    if magnitude.ndim == 1:
        magnitude = magnitude[:, None]
    return DoraPair(_lora(parts, alpha, origin), magnitude, origin)


def _loha(parts: _Parts, alpha: float | None, origin: Origin) -> LoraPair:
    scale = 1.0 if alpha is None else alpha / len(parts["hada_w1_b"])
    down, up = hadamard_factors(
        (parts["hada_w1_a"], parts["hada_w1_b"]), (parts["hada_w2_a"], parts["hada_w2_b"])
    )
    return LoraPair(down, up, scale * len(down), origin)


def _lokr(parts: _Parts, alpha: float | None, origin: Origin) -> KroneckerPair:
    left, right = (
        parts[which] if which in parts else parts[f"{which}_a"] @ parts[f"{which}_b"]
        for which in ("lokr_w1", "lokr_w2")
    )
    # ComfyUI, comfy/weight_adapter/lokr.py: the second factor's rank counts where both have one.
    rank = next((len(parts[end]) for end in ("lokr_w2_b", "lokr_w1_b") if end in parts), None)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    return KroneckerPair(left, right, scale, ((0, len(left) * len(right)),), origin)


_Maker = Callable[[_Parts, float | None, Origin], Change]
_MAKERS: Final[dict[Kind, _Maker]] = {"LoRA": _lora, "DoRA": _dora, "LoHa": _loha, "LoKr": _lokr}
