"""What is in a LoRA file, as a table that a person reads; no base weights are needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from stages.adapters.dora import DoraPair
from stages.adapters.files import DERIVED_METADATA, build_adapter
from stages.adapters.formats.assemble import Source
from stages.adapters.listing import list_names
from stages.adapters.module import Adapter
from stages.adapters.norms import delta_norm
from stages.adapters.partition import split_by_block
from stages.adapters.reading import LoraFile, read_file
from stages.contracts.blocks import BASE, BlockId, numbered_blocks
from stages.families.architecture import block_of

_FLUX_1: Final = (19, 38)
_SHOWN_CHARACTERS: Final = 100
_HEADINGS: Final = ("block", "layers", "kind", "rank", "alpha", "bytes", "norm")


@dataclass(frozen=True)
class BlockRow:
    """One block of the file: its layers as the file has them, and |Delta W|_F over all of them.

    `norm` is None where it depends on the base weights (DoRA).
    """

    block: BlockId
    layers: int
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    bytes: int
    norm: float | None


def inspect(file: Path) -> str:
    """Return a table of a LoRA file: format, blocks with rank, alpha, bytes and norm, what is odd.

    Raises:
        AdapterError: the file cannot be read, or is no LoRA of a FLUX transformer.
    """
    read = read_file(file, beside=True)
    adapter = build_adapter(read)
    rows = block_rows(read, adapter)
    spellings = (f"{title} ({count} tensors)" for title, count in sorted(read.spellings.items()))
    lines = [
        f"{file.name}: {file.stat().st_size:,} bytes",
        f"names: {', '.join(spellings)}",
        f"blocks present: {_ranges([row.block for row in rows])}",
        f"blocks absent, if the model is FLUX.1: {_ranges(_absent(rows)) or 'none'}",
        "",
        *_table(rows),
        "",
        *_metadata_lines(read.metadata),
        *(f"odd: {remark}" for remark in remarks(read, rows)),
    ]
    return "\n".join(lines)


def block_rows(read: LoraFile, adapter: Adapter) -> list[BlockRow]:
    """Return the blocks of a file, in model order."""
    sources: dict[BlockId, list[Source]] = {}
    for source in read.sources:
        sources.setdefault(block_of(source.layer.modules[0]), []).append(source)
    return [
        BlockRow(
            block=block,
            layers=len(sources[block]),
            kinds=tuple(sorted({str(source.kind) for source in sources[block]})),
            ranks=tuple(sorted({_rank(source) for source in sources[block]} - {0})),
            alphas=tuple(
                sorted(
                    {
                        read.alphas[each.layer.name]
                        for each in sources[block]
                        if _rank(each) and each.layer.name in read.alphas
                    }
                )
            ),
            bytes=sum(_size(source.tensors.values()) for source in sources[block]),
            norm=_norm(part),
        )
        for block, part in split_by_block(adapter).items()
    ]


def remarks(read: LoraFile, rows: Sequence[BlockRow]) -> list[str]:
    """Return what a person should know before using the file."""
    found = [read.assumed] if read.assumed else []
    if read.apart:
        size = _size(read.apart.values())
        found.append(
            f"{len(read.apart)} tensors ({size:,} bytes) are for text encoders and are kept apart, "
            f"pictures here are without them: {list_names(list(read.apart))}"
        )
    if len(read.spellings) > 1:
        found.append("names are spelled in several ways; other programs may read one of them only")
    if zero := [str(row.block) for row in rows if row.norm == 0.0]:
        found.append(f"present, but without any effect: {list_names(zero)}")
    if _beyond_flux_1(rows):
        found.append("has more blocks than FLUX.1")
    if not any(row.block != BASE for row in rows):
        found.append("changes embedders and final layers alone, no block")
    return found + _number_remarks(read.sources, read.alphas) + _kind_remarks(read.sources)


def _number_remarks(sources: Sequence[Source], alphas: Mapping[str, float]) -> list[str]:
    found = []
    formats = {
        str(tensor.dtype).removeprefix("torch.")
        for source in sources
        for part, tensor in source.parts.items()
        if part != "alpha"
    }
    if len(formats) > 1:
        found.append(f"number formats are mixed: {list_names(formats)}")
    ranked = {source.layer.name: _rank(source) for source in sources if _rank(source)}
    if len(set(ranked.values())) > 1:
        found.append("ranks differ between layers")
    scaled = [name for name, rank in ranked.items() if alphas.get(name, rank) != rank]
    if scaled:
        found.append(f"alpha is not the rank (scale is not 1) in {len(scaled)} layers")
    return found


def _kind_remarks(sources: Sequence[Source]) -> list[str]:
    kinds = {str(source.kind) for source in sources} - {"LoRA"}
    found = []
    if kinds:
        found.append(
            f"has {', '.join(sorted(kinds))}: written back as it came, which ComfyUI loads and "
            "diffusers' FluxPipeline does not"
        )
    if "DoRA" in kinds:
        found.append(
            "DoRA's change depends on the base weights: norms need them, and a strength between 0 "
            "and 1 is the way from the base weight to the changed one, as in ComfyUI, not PEFT's"
        )
    return found


def _rank(source: Source) -> int:
    """Return the rank that alpha is divided by; 0 where there is none, as in a full LoKr."""
    ends = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    return next((len(source.parts[end]) for end in ends if end in source.parts), 0)


def _norm(part: Adapter) -> float | None:
    norms = [
        None if isinstance(change, DoraPair) else delta_norm(change)
        for change in part.modules.values()
    ]
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) if len(known) == len(norms) else None


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _beyond_flux_1(rows: Sequence[BlockRow]) -> bool:
    known = {*numbered_blocks(*_FLUX_1), BASE}
    return any(row.block not in known for row in rows)


def _absent(rows: Sequence[BlockRow]) -> list[BlockId]:
    present = {row.block for row in rows}
    return [block for block in (*numbered_blocks(*_FLUX_1), BASE) if block not in present]


def _ranges(blocks: Sequence[BlockId]) -> str:
    """Return blocks as `double.0-18, single.3, base`."""
    groups: list[list[BlockId]] = []
    for block in sorted(blocks):
        last = groups[-1][-1] if groups else None
        if last and last.stack == block.stack and last.index + 1 == block.index:
            groups[-1].append(block)
        else:
            groups.append([block])
    return ", ".join(
        str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1].index}" for group in groups
    )


def _table(rows: Sequence[BlockRow]) -> list[str]:
    cells = [
        _HEADINGS,
        *(
            (
                str(row.block),
                str(row.layers),
                "+".join(row.kinds),
                _listed(row.ranks),
                _listed(row.alphas),
                f"{row.bytes:,}",
                "–" if row.norm is None else f"{row.norm:.4g}",
            )
            for row in rows
        ),
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
    return [
        "  ".join(
            text.ljust(width) if column in (0, 2) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _listed(numbers: Sequence[float]) -> str:
    """Return one number, or the smallest and the largest; a dash where none is stated."""
    if not numbers:
        return "–"
    if len(numbers) == 1:
        return f"{numbers[0]:g}"
    return f"{min(numbers):g}..{max(numbers):g}"


def _metadata_lines(metadata: Mapping[str, str]) -> list[str]:
    lines = []
    for name, text in sorted(metadata.items()):
        flat = " ".join(text.split())
        cut = flat if len(flat) <= _SHOWN_CHARACTERS else f"{flat[:_SHOWN_CHARACTERS]}…"
        note = " (not kept when written)" if name in DERIVED_METADATA else ""
        lines.append(f"header: {name} = {cut}{note}")
    return lines
