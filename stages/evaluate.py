"""Pictures and shares -> one table of all blocks, heat maps on one scale, contact sheets.

Reads   --rendered  folder of `render`: index.csv and the pictures it names
        --shares    shares.csv of `attribute`
        --index     index.csv of `split`
Writes  blocks.csv (BLOCKS), pictures.csv (PICTURES), variants.csv (VARIANTS), strengths.csv
        (STRENGTHS), distances.csv (DISTANCES), heatmaps/<prompt>-<seed>/<variant>.png,
        sheets/<mode>-<page>.png, sheet.png (the first of them), metrics.json
Params  evaluate

`only` pictures are compared with `none` (what does the block bring?), `without` pictures with
`full` (what is missing?). Only development prompts enter the table; prompts without the trigger
measure how far the LoRA bleeds, and which block does it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from stages.contracts.errors import Problem, TableError
from stages.contracts.params import DistanceParams, EvaluateParams
from stages.contracts.tables import (
    BLOCKS,
    DISTANCES,
    PICTURES,
    RENDERED,
    SHARES,
    SPLIT_INDEX,
    STRENGTHS,
    VARIANTS,
    read_table,
    write_table,
)
from stages.imaging.heatmap import HeatmapStyle, Scale, difference, draw_heatmap, shared_scale
from stages.imaging.lens_sheet import MODES, MapLook, drawn_modes, lens_sheets
from stages.imaging.png import encode_png
from stages.imaging.rendered_pairs import RenderedPair, load_pairs, measure_picture
from stages.lens.block_table import (
    DEVELOP,
    block_table,
    effect_metrics,
    is_anecdotal,
    of_kind,
    trust_metrics,
)
from stages.lens.perceptual import check_models, distance, open_embedder
from stages.lens.rankings import Resampling
from stages.lens.variant_table import strength_table, variant_table
from stages.runtime.console import run_stage
from stages.runtime.device import configure_torch
from stages.runtime.files import rounded, write_json
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track

_log = logging.getLogger(__name__)


def evaluate(params: EvaluateParams, rendered: Path, shares: Path, index: Path, out: Path) -> None:
    """Measure all rendered pictures and write the tables, heat maps, sheets and metrics.

    Raises:
        TableError: a table breaks its contract, pictures are missing, or the tables disagree.
        WeightsError: a model of `distances` is missing or another one.
    """
    pictures = read_table(RENDERED, rendered / "index.csv")
    blocks = read_table(SPLIT_INDEX, index).merge(
        read_table(SHARES, shares), on="block", how="outer", indicator="origin"
    )
    _check(pictures, blocks, rendered)
    check_models(params.distances)
    pairs = load_pairs(pictures, rendered)
    measured = _measure(pairs)
    resampling = Resampling(params.resamples, params.confidence, params.seed)
    table = block_table(blocks, measured, params.top, resampling)
    variants = variant_table(measured, resampling)
    scale = shared_scale(_block_peaks(measured))
    style = HeatmapStyle(params.colour_map, params.heatmap_opacity, params.heatmap_text)
    look = MapLook(style, scale, params.heatmap_scale == "picture", params.sheet_rows)
    metrics = {**effect_metrics(measured, table), **trust_metrics(measured, table, resampling)}
    with replace_folder(out) as work:
        write_table(PICTURES, measured, work / "pictures.csv")
        write_table(BLOCKS, table, work / "blocks.csv")
        write_table(VARIANTS, variants, work / "variants.csv")
        write_table(STRENGTHS, strength_table(variants), work / "strengths.csv")
        write_table(DISTANCES, _distances(pairs, params.distances), work / "distances.csv")
        write_json(work / "metrics.json", _metrics(metrics, measured, scale))
        _draw_heatmaps(pairs, look, work / "heatmaps")
        _draw_sheets(pairs, table, is_anecdotal(measured), look, work)


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
    for mode in MODES:
        drawn = {v.partition(":")[2] for v in counts.index if str(v).startswith(f"{mode}:")}
        if drawn and drawn != blocks:
            odd = sorted(drawn ^ blocks)
            problems.append(Problem(f"{where} {mode}", f"blocks differ from split: {odd}", remedy))
    return problems


def _measure(pairs: Sequence[RenderedPair]) -> pd.DataFrame:
    """Return the PICTURES table: every picture against both of its references."""
    jobs = [(pair, variant) for pair in pairs for variant in pair.files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pd.DataFrame(pool.map(lambda job: measure_picture(*job), jobs))


def _distances(pairs: Sequence[RenderedPair], models: Sequence[DistanceParams]) -> pd.DataFrame:
    """Return the DISTANCES table, a row per model and picture."""
    rows = []
    for model in models:
        embed = open_embedder(model, configure_torch())
        for pair in track(pairs, len(pairs), f"evaluate: {model.metric}"):
            none, full = embed(pair.none), embed(pair.full)
            for variant in pair.files:
                vector = embed(pair.load(variant))
                row = (model.metric, pair.prompt, pair.seed, variant)
                rows.append((*row, distance(vector, none), distance(vector, full)))
    columns = DISTANCES.schema.columns
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype({name: column.dtype.type for name, column in columns.items()})


def _block_peaks(measured: pd.DataFrame) -> list[float]:
    """Return the peaks of all pictures that show one block, develop prompts alone."""
    develop = of_kind(measured, DEVELOP)
    kinds = develop["variant"].str.partition(":")[0]
    return develop.loc[kinds.isin(["only", "without"]), "difference_peak"].tolist()


def _metrics(
    metrics: Mapping[str, float], measured: pd.DataFrame, scale: Scale
) -> dict[str, float | int]:
    """Return the metrics; what cannot be measured (no such pictures, no effect) is left out."""
    for name in sorted(name for name, value in metrics.items() if np.isnan(value)):
        _log.warning("evaluate: %s cannot be measured with these pictures", name)
    develop = of_kind(measured, DEVELOP)
    return {
        **{name: rounded(value) for name, value in metrics.items() if not np.isnan(value)},
        "heatmap_top": rounded(scale.top),
        "anecdotal": int(is_anecdotal(measured)),
        "prompts": int(develop["prompt"].nunique()),
        "seeds": int(develop["seed"].nunique()),
    }


def _draw_heatmaps(pairs: Sequence[RenderedPair], look: MapLook, out: Path) -> None:
    """Write one heat map per picture that shows a choice of blocks."""

    def draw(job: tuple[RenderedPair, str]) -> None:
        pair, variant = job
        picture, reference = pair.load(variant), pair.reference(variant)
        scale = look.scale(difference(picture, reference))
        drawn = draw_heatmap(variant, picture, reference, scale, look.style)
        (out / pair.folder / pair.files[variant].name).write_bytes(encode_png(drawn))

    jobs = [(pair, v) for pair in pairs for v in pair.files if v not in ("none", "repeat")]
    for pair in pairs:
        (out / pair.folder).mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(draw, jobs):
            pass


def _draw_sheets(
    pairs: Sequence[RenderedPair], table: pd.DataFrame, anecdotal: bool, look: MapLook, work: Path
) -> None:
    """Write the contact sheets of the first development pair, blocks in model order."""
    develop = [pair for pair in pairs if pair.kind == DEVELOP]
    rows = table.set_index("block").select_dtypes("number").to_dict("index")
    numbers = {
        str(block): {str(n): float(v) for n, v in row.items()} for block, row in rows.items()
    }
    note = "anecdotal: one prompt, one seed"
    if not anecdotal:
        note = f"one of {len(develop)} pictures per block"
    (work / "sheets").mkdir()
    pages = [
        (f"{mode}-{number}.png", page)
        for mode in drawn_modes(develop)
        for number, page in enumerate(lens_sheets(develop[0], mode, numbers, note, look), start=1)
    ]
    for name, page in pages:
        (work / "sheets" / name).write_bytes(encode_png(page))
    (work / "sheet.png").write_bytes(encode_png(pages[0][1]))


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(evaluate, sections=("evaluate",), paths=("rendered", "shares", "index", "out"))


if __name__ == "__main__":
    main()
