"""Pictures and shares -> one table of all blocks, heat maps on one scale, a contact sheet.

Reads   --rendered  folder of `render`: index.csv and the pictures it names
        --shares    shares.csv of `attribute`
        --index     index.csv of `split`
Writes  blocks.csv (BLOCKS), pictures.csv (PICTURES), heatmaps/<prompt>-<seed>/<variant>.png,
        sheet.png, metrics.json
Params  evaluate

`only` pictures are compared with `none` (what does the block bring?), `without` pictures with
`full` (what is missing?). Only development prompts enter the table; prompts without the trigger
measure how far the LoRA bleeds. Needs no torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from PIL import Image

from stages.contracts.blocks import BlockId
from stages.contracts.errors import Problem, TableError
from stages.contracts.params import EvaluateParams
from stages.contracts.tables import (
    BLOCKS,
    PICTURES,
    RENDERED,
    SHARES,
    SPLIT_INDEX,
    read_table,
    write_table,
)
from stages.imaging.heatmap import (
    Difference,
    HeatmapStyle,
    Scale,
    colourise,
    difference,
    draw_heatmap,
    own_scale,
    peak,
    shared_scale,
)
from stages.imaging.metrics import Picture, mse, recovery_of_errors
from stages.imaging.png import encode_png
from stages.imaging.sheet import Group, Tile, contact_sheet
from stages.lens.block_table import (
    DEVELOP,
    Resampling,
    block_table,
    effect_metrics,
    of_kind,
)
from stages.runtime.console import run_stage
from stages.runtime.files import rounded, write_json
from stages.runtime.outputs import replace_folder

_log = logging.getLogger(__name__)

_STACKS: Final = {
    "double": "Double blocks",
    "single": "Single blocks",
    "base": "Outside the blocks",
}


@dataclass(frozen=True)
class _Pair:
    """One prompt with one seed: its references and the files of all its variants."""

    prompt: str
    seed: int
    text: str
    none: Picture
    full: Picture
    files: Mapping[str, Path]

    @property
    def folder(self) -> str:
        return f"{self.prompt}-{self.seed}"

    @property
    def kind(self) -> str:
        return self.prompt.rpartition("-")[0]

    def reference(self, variant: str) -> Picture:
        return self.full if variant.startswith(("without:", "repeat")) else self.none


@dataclass(frozen=True)
class _Look:
    """How all heat maps are drawn."""

    style: HeatmapStyle
    shared: Scale
    own: bool

    def scale(self, item: Difference) -> Scale:
        return own_scale(peak(item)) if self.own else self.shared


def evaluate(params: EvaluateParams, rendered: Path, shares: Path, index: Path, out: Path) -> None:
    """Measure all rendered pictures and write the block table, heat maps, sheet and metrics.

    Raises:
        TableError: a table breaks its contract, pictures are missing, or the tables disagree.
    """
    pictures = read_table(RENDERED, rendered / "index.csv")
    blocks = read_table(SPLIT_INDEX, index).merge(
        read_table(SHARES, shares), on="block", how="outer", indicator="origin"
    )
    _check(pictures, blocks, rendered)
    pairs = _load_pairs(pictures, rendered)
    measured = _measure(pairs)
    resampling = Resampling(params.resamples, params.confidence, params.seed)
    table = block_table(blocks, measured, resampling)
    scale = shared_scale(_block_peaks(measured))
    with replace_folder(out) as work:
        write_table(PICTURES, measured, work / "pictures.csv")
        write_table(BLOCKS, table, work / "blocks.csv")
        write_json(work / "metrics.json", _metrics(measured, table, scale))
        look = _Look(
            HeatmapStyle(params.colour_map, params.heatmap_opacity),
            scale,
            own=params.heatmap_scale == "picture",
        )
        _draw_heatmaps(pairs, look, work / "heatmaps")
        sheet = _draw_sheet(pairs, table, look)
        (work / "sheet.png").write_bytes(encode_png(sheet))


def _check(pictures: pd.DataFrame, blocks: pd.DataFrame, rendered: Path) -> None:
    """Raise one TableError with all that is missing or does not fit together."""
    problems = [
        Problem(str(rendered / file), "missing", "Run `dvc repro --force render`.")
        for file in pictures["file"]
        if not (rendered / file).is_file()
    ]
    one_sided = blocks[blocks["origin"] != "both"]
    problems += [
        Problem(
            f"block {block}",
            f"in {'split' if origin == 'left_only' else 'attribute'} only",
            "Run `dvc repro evaluate`, so that both read the same adapter.",
        )
        for block, origin in zip(one_sided["block"], one_sided["origin"], strict=True)
    ]
    problems += _crossing_problems(pictures, set(blocks["block"]), rendered / "index.csv")
    if problems:
        raise TableError("The pictures cannot be evaluated", problems)


def _crossing_problems(pictures: pd.DataFrame, blocks: set[str], where: Path) -> list[Problem]:
    """Return what keeps prompts, seeds and variants from being fully crossed."""
    remedy = "Run `dvc repro --force render`."
    develop = pictures[pictures["prompt"].str.startswith(f"{DEVELOP}-")]
    problems = []
    if develop.empty:
        problems.append(Problem(str(where), "no development prompt", "Fill prompts.develop."))
    for (prompt, seed), group in pictures.groupby(["prompt", "seed"]):
        if lacking := {"none", "full"} - set(group["variant"]):
            problems.append(Problem(f"{where} {prompt} seed {seed}", f"no {lacking}", remedy))
    counts = develop["variant"].value_counts()
    expected = develop["prompt"].nunique() * develop["seed"].nunique()
    problems += [
        Problem(f"{where} {variant}", f"{count} development pictures, expected {expected}", remedy)
        for variant, count in counts.items()
        if count != expected
    ]
    for mode in ("only", "without"):
        drawn = {v.partition(":")[2] for v in counts.index if str(v).startswith(f"{mode}:")}
        if drawn and drawn != blocks:
            odd = sorted(drawn ^ blocks)
            problems.append(Problem(f"{where} {mode}", f"blocks differ from split: {odd}", remedy))
    return problems


def _load_pairs(pictures: pd.DataFrame, rendered: Path) -> list[_Pair]:
    """Return all prompt-seed pairs, in the order of params.yaml, develop first."""
    pairs = []
    for _, group in pictures.groupby(["prompt", "seed"]):
        prompt, seed = str(group["prompt"].iloc[0]), int(group["seed"].iloc[0])
        files = {v: rendered / f for v, f in zip(group["variant"], group["file"], strict=True)}
        none, full = _load(files["none"]), _load(files["full"])
        pairs.append(_Pair(prompt, seed, str(group["text"].iloc[0]), none, full, files))
    return sorted(pairs, key=lambda p: (p.kind, int(p.prompt.rpartition("-")[2]), p.seed))


def _load(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _measure(pairs: Sequence[_Pair]) -> pd.DataFrame:
    """Return the PICTURES table: every picture against both of its references."""

    def measure(job: tuple[_Pair, str]) -> dict[str, object]:
        pair, variant = job
        picture = _load(pair.files[variant])
        effect, to_full = mse(pair.none, pair.full), mse(picture, pair.full)
        return {
            "prompt": pair.prompt,
            "seed": pair.seed,
            "variant": variant,
            "mse_to_none": mse(picture, pair.none),
            "mse_to_full": to_full,
            "recovery": recovery_of_errors(to_full, effect) if effect > 0.0 else np.nan,
            "difference_peak": peak(difference(picture, pair.reference(variant))),
        }

    jobs = [(pair, variant) for pair in pairs for variant in pair.files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pd.DataFrame(pool.map(measure, jobs))


def _block_peaks(measured: pd.DataFrame) -> list[float]:
    """Return the peaks of all pictures that show one block, develop prompts alone."""
    develop = of_kind(measured, DEVELOP)
    return develop.loc[develop["variant"].str.contains(":"), "difference_peak"].tolist()


def _metrics(measured: pd.DataFrame, table: pd.DataFrame, scale: Scale) -> dict[str, float | int]:
    """Return the metrics; what cannot be measured (no such pictures, no effect) is left out."""
    metrics = {**effect_metrics(measured, table), "heatmap_top": scale.top}
    for name in sorted(name for name, value in metrics.items() if np.isnan(value)):
        _log.warning("evaluate: %s cannot be measured with these pictures", name)
    develop = of_kind(measured, DEVELOP)
    return {
        **{name: rounded(value) for name, value in metrics.items() if not np.isnan(value)},
        "prompts": int(develop["prompt"].nunique()),
        "seeds": int(develop["seed"].nunique()),
    }


def _draw_heatmaps(pairs: Sequence[_Pair], look: _Look, out: Path) -> None:
    """Write one heat map per `only`, `without` and `full` picture."""

    def draw(job: tuple[_Pair, str]) -> None:
        pair, variant = job
        picture, reference = _load(pair.files[variant]), pair.reference(variant)
        scale = look.scale(difference(picture, reference))
        drawn = draw_heatmap(picture, reference, scale, look.style)
        (out / pair.folder / pair.files[variant].name).write_bytes(encode_png(drawn))

    jobs = [(p, v) for p in pairs for v in p.files if v == "full" or v.startswith(("only", "with"))]
    for pair in pairs:
        (out / pair.folder).mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(draw, jobs):
            pass


def _draw_sheet(pairs: Sequence[_Pair], table: pd.DataFrame, look: _Look) -> Picture:
    """Return the contact sheet of the first development pair, blocks in model order."""
    pair = next(pair for pair in pairs if pair.kind == DEVELOP)
    mode = "only" if any(v.startswith("only:") for v in pair.files) else "without"

    def tile(label: str, variant: str, note: str) -> Tile:
        picture = _load(pair.files[variant])
        gap = difference(picture, pair.reference(variant))
        return Tile(label, note, picture, colourise(gap, look.scale(gap), look.style.colour_map))

    rows = {row.block: row for row in table.itertuples()}
    groups = [
        Group(
            "References",
            [
                Tile("none: base model", "LoRA off", pair.none, None),
                tile("full: whole LoRA", "full", "all blocks on"),
            ],
        )
    ]
    for stack, heading in _STACKS.items():
        members = sorted(b for name in rows if (b := BlockId.parse(str(name))).stack == stack)
        tiles = [
            tile(str(block), f"{mode}:{block}", _note(rows[str(block)], mode)) for block in members
        ]
        groups.append(Group(f"{heading}: {len(tiles)} with LoRA weights", tiles))
    words = "Each block alone" if mode == "only" else "All blocks but one"
    subtitle = f"“{pair.text}”, seed {pair.seed}, one of {_develop_count(pairs)} pictures per block"
    return contact_sheet(words, subtitle, groups, look.shared, look.style.colour_map)


def _develop_count(pairs: Sequence[_Pair]) -> int:
    return sum(pair.kind == DEVELOP for pair in pairs)


def _note(row: Any, mode: str) -> str:
    value = float(getattr(row, f"{mode}_recovery"))
    recovery = "–" if np.isnan(value) else f"{value:.2f}"
    return f"recovery {recovery} · share {100.0 * float(row.share):.1f} %"


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(evaluate, sections=("evaluate",), paths=("rendered", "shares", "index", "out"))


if __name__ == "__main__":
    main()
