"""The smallest adapter that still does the job, checked on prompts that had no say in it.

Reads:   the base model (--weights: its manifest), the adapter (--adapter), the block table of
         evaluate (--blocks).
Writes:  adapter-slim.safetensors, curve.csv (CURVE), images/<prompt>-<seed>/{none,full,slim}.png
         of the held-out prompts and seeds, metrics.json.
Params:  slim, model, sampling, prompts.

The chooser puts the blocks in an order; P(1_S) at noised pictures (lens/attribution.py) predicts
every size. The size is the smallest whose pictures of the development prompts recover enough even
at the lower end of their interval. Held-out pictures only confirm: the metrics are theirs, and a
set that misses the bar there is reported, not replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.module import Adapter
from stages.adapters.partition import restrict, split_by_block
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, Problem, TableError
from stages.contracts.params import ModelParams, PromptsParams, SamplingParams, SlimParams
from stages.contracts.tables import BLOCKS, CURVE, read_table, write_table
from stages.families.weights import ensure_weights
from stages.imaging.metrics import Picture, recovery
from stages.imaging.png import encode_png
from stages.lens.attribution import measure_effect, score_sets
from stages.lens.selection import (
    Order,
    greedy_steps,
    largest_first,
    score_prefixes,
    smallest_passing,
)
from stages.lens.statistics import bootstrap_interval
from stages.runtime.console import run_stage
from stages.runtime.files import rounded, sha256_file, write_json
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track
from stages.sampling.generation import Generator, Job, generate, open_generator
from stages.sampling.probes import make_probes, probe_velocity
from stages.sampling.prompts import NamedPrompt, name_prompts
from stages.sampling.variants import FULL, NONE, Variant, gate_values, subset

_BYTES_PER_NUMBER: Final = 4  # our files are float32
_COLUMNS: Final = {"shares": "share", "isolate": "only_recovery", "greedy": "share"}
"""The column of the block table from whose order each chooser starts."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Shots:
    """Prompts crossed with seeds: (name of the prompt, seed), seeds fastest."""

    prompts: tuple[NamedPrompt, ...]
    seeds: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Iterate over the shots."""
        return iter([(prompt.name, seed) for prompt in self.prompts for seed in self.seeds])

    def __len__(self) -> int:
        """Return the number of shots."""
        return len(self.prompts) * len(self.seeds)


@dataclass(frozen=True)
class _Studio:
    """What makes pictures with any blocks of the adapter."""

    generator: Generator
    blocks: tuple[BlockId, ...]
    sampling: SamplingParams

    def draw(
        self, shots: Sequence[tuple[str, int]], variants: Sequence[Variant]
    ) -> list[list[Picture]]:
        """Return for each variant its pictures, in the order of `shots`."""
        jobs = [
            Job(prompt, seed, gate_values(variant, self.blocks))
            for variant in variants
            for prompt, seed in shots
        ]
        made = generate(self.generator, jobs, self.sampling)
        pictures = [pixels for _, pixels in track(made, len(jobs), "slim: pictures")]
        return [pictures[start : start + len(shots)] for start in range(0, len(jobs), len(shots))]


@dataclass(frozen=True)
class _Trial:
    """Shots and their pictures without and with the whole LoRA."""

    shots: _Shots
    none: list[Picture]
    full: list[Picture]

    def judge(self, pictures: Sequence[Picture], params: SlimParams) -> _Verdict:
        """Return how much of the LoRA's effect is in `pictures`, one per shot."""
        values = [
            recovery(picture, none, full)
            for picture, none, full in zip(pictures, self.none, self.full, strict=True)
        ]
        crossed = np.array(values).reshape(len(self.shots.prompts), len(self.shots.seeds))
        low, _ = bootstrap_interval(crossed, params.resamples, params.confidence, params.seed)
        return _Verdict(float(crossed.mean()), low)


@dataclass(frozen=True)
class _Verdict:
    """Mean recovery over prompts and seeds, and the lower end of its interval."""

    recovery: float
    low: float


def slim(
    params: SlimParams,
    model: ModelParams,
    sampling: SamplingParams,
    prompts: PromptsParams,
    *,
    weights: Path,
    adapter: Path,
    blocks: Path,
    out: Path,
) -> None:
    """Write the slim adapter, the curve behind it, and the pictures that check it into `out`.

    Raises:
        AdapterError: the adapter cannot be read, does not fit the base model, or has no effect.
        TableError: the block table is of another adapter, or lacks what the chooser needs.
        WeightsError: the base weights are missing or changed.
    """
    source = read_adapter(adapter)
    start = _starting_order(blocks, source, params)
    folder = ensure_weights(weights)
    named = name_prompts(prompts)
    develop = _Shots(named.develop, tuple(prompts.seeds))
    held_out = _Shots(named.held_out, tuple(prompts.held_out_seeds))
    every = (*named.develop, *named.held_out)
    with open_generator(folder, source, every, model, sampling) as generator:
        studio = _Studio(generator, source.blocks, sampling)
        choosing, confirming = _draw_references(studio, (develop, held_out), adapter)
        order = _order_blocks(studio, develop, start, params)
        size, tried = _find_size(studio, choosing, order, params)
        kept = [source.blocks[column] for column in order.blocks[:size]]
        (pictures,) = studio.draw([*held_out], [subset("slim", kept)])
    confirmed = confirming.judge(pictures, params)
    _tell(size, len(source.blocks), confirmed, params)
    with replace_folder(out) as work:
        file = work / "adapter-slim.safetensors"
        _write_slim(file, source, kept, adapter)
        write_table(CURVE, _curve(source, order, tried), work / "curve.csv")
        _write_pictures(work / "images", confirming, pictures)
        write_json(
            work / "metrics.json",
            {
                "blocks_kept": size,
                "bytes": file.stat().st_size,
                "bytes_ratio": rounded(file.stat().st_size / adapter.stat().st_size),
                "recovery": rounded(confirmed.recovery),
                "recovery_low": rounded(confirmed.low),
                "recovery_develop": rounded(tried[size].recovery),
                "recovery_develop_low": rounded(tried[size].low),
            },
        )


def _starting_order(path: Path, adapter: Adapter, params: SlimParams) -> tuple[int, ...]:
    """Return the adapter's blocks, as column numbers, by falling score in the block table."""
    column = _COLUMNS[params.chooser]
    scores = read_table(BLOCKS, path).set_index("block")[column]
    names = [str(block) for block in adapter.blocks]
    if set(scores.index) != set(names):
        odd = sorted(set(scores.index) ^ set(names))
        problem = Problem(str(path), f"blocks differ from the adapter's: {odd}", "Run `dvc repro`.")
        raise TableError("The block table is another adapter's", [problem])
    if scores.isna().any():
        remedy = "Add only to params render.modes, or set slim.chooser to shares or greedy."
        problem = Problem(f"{path} {column}", "has no values", remedy)
        raise TableError(f"The chooser {params.chooser} cannot rank the blocks", [problem])
    return largest_first(scores.loc[names].tolist())


def _draw_references(studio: _Studio, groups: Sequence[_Shots], adapter: Path) -> list[_Trial]:
    """Return each group of shots with its pictures of `none` and `full`."""
    shots = [shot for group in groups for shot in group]
    none, full = studio.draw(shots, [NONE, FULL])
    problems = [
        Problem(
            f"prompt {prompt}, seed {seed}",
            "the picture is the same with and without the LoRA",
            "Train it longer, or choose a prompt that shows it.",
        )
        for (prompt, seed), bare, adapted in zip(shots, none, full, strict=True)
        if np.array_equal(bare, adapted)
    ]
    if problems:
        raise AdapterError(f"There is nothing to recover of {adapter}", problems)
    trials = []
    for group in groups:
        count = len(group)
        trials.append(_Trial(group, none[:count], full[:count]))
        none, full = none[count:], full[count:]
    return trials


def _order_blocks(
    studio: _Studio, shots: _Shots, start: tuple[int, ...], params: SlimParams
) -> Order:
    """Return the order in which the chooser takes the blocks, and P of each prefix."""
    sampling = studio.sampling
    probes = make_probes(studio.generator, [*shots], params.sigmas, sampling)
    velocity = probe_velocity(studio.generator, probes, sampling.guidance)
    effect = measure_effect(velocity, len(probes), len(start), sampling.batch)
    score = partial(score_sets, effect, batch=sampling.batch)
    if params.chooser != "greedy":
        return score_prefixes(start, score)
    steps = track(greedy_steps(start, score, params.candidates), len(start), "slim: choose")
    blocks, scores = zip(*steps, strict=True)
    return Order(blocks, (0.0, *scores))


def _find_size(
    studio: _Studio, trial: _Trial, order: Order, params: SlimParams
) -> tuple[int, dict[int, _Verdict]]:
    """Return the smallest size that passes, and the verdict on each size tried."""
    whole = len(order.blocks)
    tried = {0: _Verdict(0.0, 0.0), whole: _Verdict(1.0, 1.0)}  # none and full, by definition

    def passing(sizes: Sequence[int]) -> list[bool]:
        sets = [[studio.blocks[column] for column in order.blocks[:size]] for size in sizes]
        variants = [subset(f"first-{len(blocks)}", blocks) for blocks in sets]
        drawn = studio.draw([*trial.shots], variants)
        for size, pictures in zip(sizes, drawn, strict=True):
            tried[size] = trial.judge(pictures, params)
        return [tried[size].low >= params.recovery for size in sizes]

    at_once = max(1, studio.sampling.batch // len(trial.shots))
    return smallest_passing(whole, at_once, passing), tried


def _tell(size: int, whole: int, confirmed: _Verdict, params: SlimParams) -> None:
    if size == whole:
        _log.warning("only the whole adapter passes: it is not slimmed")
    else:
        _log.info("%d of %d blocks pass on development prompts", size, whole)
    _log.log(
        logging.INFO if confirmed.recovery >= params.recovery else logging.WARNING,
        "held-out recovery %.3f (at least %.3f), asked for %g",
        confirmed.recovery,
        confirmed.low,
        params.recovery,
    )


def _write_slim(path: Path, source: Adapter, kept: Sequence[BlockId], adapter: Path) -> None:
    slimmed = restrict(source, kept)
    origin = {
        "blocklens.source_sha256": sha256_file(adapter),
        "blocklens.blocks": ",".join(str(block) for block in slimmed.blocks),
    }
    write_adapter(path, Adapter(slimmed.modules, {**source.metadata, **origin}))


def _curve(source: Adapter, order: Order, tried: Mapping[int, _Verdict]) -> pd.DataFrame:
    """Return the CURVE table: every size with its prediction, and the verdicts on those tried."""
    parts = split_by_block(source)
    blocks = [source.blocks[column] for column in order.blocks]
    numbers = np.cumsum([0, *(parts[block].parameters for block in blocks)])
    verdicts = [tried.get(size, _Verdict(np.nan, np.nan)) for size in range(len(numbers))]
    return pd.DataFrame(
        {
            "blocks": range(len(numbers)),
            "added": ["", *map(str, blocks)],
            "bytes": numbers * _BYTES_PER_NUMBER,
            "predicted": order.scores,
            "recovery": [verdict.recovery for verdict in verdicts],
            "recovery_low": [verdict.low for verdict in verdicts],
        }
    )


def _write_pictures(folder: Path, trial: _Trial, pictures: Sequence[Picture]) -> None:
    drawn = zip(trial.none, trial.full, pictures, strict=True)
    for (prompt, seed), variants in zip(trial.shots, drawn, strict=True):
        place = folder / f"{prompt}-{seed}"
        place.mkdir(parents=True)
        for name, picture in zip(("none", "full", "slim"), variants, strict=True):
            (place / f"{name}.png").write_bytes(encode_png(picture))


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        slim,
        sections=("slim", "model", "sampling", "prompts"),
        paths=("weights", "adapter", "blocks", "out"),
    )


if __name__ == "__main__":
    main()
