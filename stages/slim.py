"""The smallest adapter that still does the job, checked on prompts that had no say in it.

Reads:   the base model (--weights: its manifest), the adapter (--adapter), the block table of
         evaluate (--blocks).
Writes:  adapter-slim.safetensors, curve.csv (CURVE), strengths.csv (SLIM_STRENGTHS), retrain/
         (settings to train exactly those blocks), images/<prompt>-<seed>/{none,full,slim}.png of
         the held-out prompts and seeds, ranks.csv (SLIM_RANKS) and ranks/ with a file for each of
         slim.ranks, metrics.json.
Params:  slim, model, sampling, prompts.

The chooser puts the blocks in an order (slimming/choosers.py). The blocks kept may be given
strengths that make up for the others (lens/interaction.py). The size is the smallest whose pictures
of the development prompts recover enough even at the lower end of their interval (from few prompts
no guarantee: docs/method.md), each prompt with strengths fitted to the others. Held-out pictures
only confirm: the metrics are theirs, and a set that misses the bar there is reported, not replaced.
So do the smaller ranks, a lever of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.module import Adapter
from stages.adapters.partition import split_by_block
from stages.adapters.reranking import require_rankable
from stages.adapters.strengths import require_scalable, with_strengths
from stages.contracts.blocks import BlockId
from stages.contracts.params import ModelParams, PromptsParams, SamplingParams, SlimParams
from stages.contracts.tables import (
    BLOCKS,
    CURVE,
    SLIM_RANKS,
    SLIM_STRENGTHS,
    read_table,
    write_table,
)
from stages.imaging.metrics import Picture
from stages.imaging.png import encode_png
from stages.lens.attribution import Effect, measure_effect, score_recoveries
from stages.lens.interaction import Array, measure_interaction
from stages.lens.rankings import Resampling
from stages.runtime.console import run_stage
from stages.runtime.crew import open_crew
from stages.runtime.files import rounded, sha256_file, write_json
from stages.runtime.outputs import replace_folder
from stages.runtime.progress import track
from stages.sampling.probes import ask_crew, make_probes
from stages.sampling.prompts import name_prompts
from stages.sampling.session import AS_TRAINED, AdapterVersion, set_scene
from stages.slimming.choosers import Choosing, Measured, order_blocks, read_scores
from stages.slimming.exports import retraining_files
from stages.slimming.ranks import rank_table, rerank
from stages.slimming.refitting import crossed_strengths, size_strengths
from stages.slimming.trial import Renderer, Shots, Trial, Verdict, draw_references, find_size

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """The chooser's order, and for each size 0, 1, 2, … the strengths [sizes, blocks].

    `crossed` [sizes, prompts, blocks] are those that judge the development prompts, `predicted`
    [sizes] is the recovery of velocities.
    """

    order: tuple[int, ...]
    strengths: Array
    crossed: Array
    predicted: Array


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
        ClusterError: the workers of $BLOCKLENS_DASK are not there, or not fit for the work.
    """
    source = read_adapter(adapter)
    if params.refit_ridge is not None:
        require_scalable(source, str(adapter), "Set slim.refit_ridge to null.")
    require_rankable(
        source, {f"slim.ranks[{place}]": rank for place, rank in enumerate(params.ranks)}
    )
    scores = read_scores(read_table(BLOCKS, blocks), blocks, source.blocks, params.chooser)
    named = name_prompts(prompts)
    develop = Shots(named.develop, tuple(prompts.seeds))
    held_out = Shots(named.held_out, tuple(prompts.held_out_seeds))
    scene = set_scene(weights, adapter, (*named.develop, *named.held_out), model, sampling)
    resampling = Resampling(params.resamples, params.confidence, params.seed)
    with open_crew(scene) as crew:
        renderer = Renderer(crew, len(source.blocks), sampling)
        choosing, confirming = draw_references(renderer, (develop, held_out), adapter)
        plan = _plan(renderer, develop, source, scores, params)
        size, tried = find_size(
            choosing,
            len(source.blocks),
            params.recovery,
            max(1, sampling.batch // len(develop)),
            resampling,
            lambda sizes: renderer.measure(
                choosing, [develop.of_prompts(plan.crossed[size]) for size in sizes]
            ),
        )
        (pictures,) = renderer.draw([*held_out], [plan.strengths[size]])
        confirmed = confirming.judge(confirming.recoveries(pictures), resampling)
        _tell(size, len(source.blocks), confirmed, params)
        kept = _kept(source, plan.strengths[size])
        slimmed = _slimmed(source, kept, adapter)
        sets = [(slimmed, AdapterVersion(strengths=tuple(kept.items())))]
        if size < len(source.blocks):
            sets.append((source, AS_TRAINED))
        reranked = [*rerank(renderer, sets, params.ranks, confirming, resampling)]
    with replace_folder(out) as work:
        file = work / "adapter-slim.safetensors"
        write_adapter(file, slimmed)
        (work / "ranks").mkdir()
        for one in reranked[: len(params.ranks)]:
            write_adapter(work / "ranks" / f"adapter-slim-rank-{one.rank}.safetensors", one.adapter)
        write_table(SLIM_RANKS, rank_table(reranked), work / "ranks.csv")
        write_table(CURVE, _curve(source, plan, tried), work / "curve.csv")
        write_table(
            SLIM_STRENGTHS, _strengths(source, plan.strengths[size]), work / "strengths.csv"
        )
        _write_texts(work / "retrain", retraining_files(source.blocks, plan.strengths[size]))
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
                "recovery_predicted": rounded(float(plan.predicted[size])),
            },
        )


def _plan(
    renderer: Renderer,
    shots: Shots,
    source: Adapter,
    scores: Sequence[float] | None,
    params: SlimParams,
) -> _Plan:
    """Return the order of the blocks, and the strengths of those kept at every size."""
    sampling = renderer.sampling
    probes = make_probes(renderer.crew, renderer.blocks, [*shots], params.sigmas, sampling)
    ask = ask_crew(renderer.crew, probes)
    effect = measure_effect(ask, len(probes), renderer.blocks, sampling.batch)
    products = _products(effect, params, sampling.batch)
    by_prompt = products.reshape(len(shots.prompts), -1, *products.shape[1:]).mean(axis=1)
    way = Choosing(
        params.chooser,
        params.per_byte,
        params.refit_ridge,
        params.candidates,
        params.nodes,
        sampling.batch,
    )
    mean = by_prompt.mean(axis=0)
    order = order_blocks(way, Measured(effect, mean, scores), _sizes(source))
    strengths = size_strengths(order, mean, params.refit_ridge)
    predicted = np.zeros(len(strengths))
    predicted[1:] = score_recoveries(effect, strengths[1:], sampling.batch)
    crossed = crossed_strengths(order, by_prompt, params.refit_ridge)
    return _Plan(order, strengths, crossed, predicted)


def _products(effect: Effect, params: SlimParams, batch: int) -> Array:
    """Return how the blocks work on each other [probes, blocks, blocks]; 0 where nobody asks."""
    if params.chooser != "interaction" and params.refit_ridge is None:
        return np.zeros((len(effect), effect.blocks, effect.blocks))
    measured = track(measure_interaction(effect, batch), len(effect), "slim: blocks in pairs")
    return np.stack([*measured])


def _sizes(source: Adapter) -> list[int]:
    """Return the bytes of each block in a file of ours."""
    return [part.tensor_bytes for part in split_by_block(source).values()]


def _tell(size: int, whole: int, confirmed: Verdict, params: SlimParams) -> None:
    if size == whole:
        _log.warning("only the whole adapter passes: it is not slimmed")
    else:
        _log.info("%d of %d blocks pass on development prompts", size, whole)
    _log.log(
        logging.INFO if confirmed.recovery >= params.recovery else logging.WARNING,
        "held-out recovery %.3f (interval from %.3f), asked for %g",
        confirmed.recovery,
        confirmed.low,
        params.recovery,
    )


def _kept(source: Adapter, strengths: Array) -> dict[BlockId, float]:
    """Return the blocks with a strength, and what it is; a negative one counts too."""
    return {
        block: float(strength)
        for block, strength in zip(source.blocks, strengths, strict=True)
        if strength != 0.0
    }


def _slimmed(source: Adapter, kept: Mapping[BlockId, float], adapter: Path) -> Adapter:
    """Return the blocks `kept` at their strengths; the metadata says which, and of what file."""
    slimmed = with_strengths(source, kept)
    origin = {
        "blocklens.source_sha256": sha256_file(adapter),
        "blocklens.blocks": ",".join(str(block) for block in slimmed.blocks),
        "blocklens.strengths": ",".join(f"{kept[block]:g}" for block in slimmed.blocks),
    }
    return replace(slimmed, metadata={**source.metadata, **origin})


def _curve(source: Adapter, plan: _Plan, tried: Mapping[int, Verdict]) -> pd.DataFrame:
    """Return the CURVE table: every size with its prediction, and the verdicts on those tried."""
    sizes = _sizes(source)
    verdicts = [tried.get(size, Verdict(np.nan, np.nan)) for size in range(len(plan.order) + 1)]
    return pd.DataFrame(
        {
            "blocks": range(len(verdicts)),
            "added": ["", *(str(source.blocks[column]) for column in plan.order)],
            "bytes": np.cumsum([0, *(sizes[column] for column in plan.order)]),
            "predicted": plan.predicted,
            "recovery": [verdict.recovery for verdict in verdicts],
            "recovery_low": [verdict.low for verdict in verdicts],
        }
    )


def _strengths(source: Adapter, strengths: Array) -> pd.DataFrame:
    """Return the SLIM_STRENGTHS table."""
    return pd.DataFrame({"block": [*map(str, source.blocks)], "strength": strengths})


def _write_texts(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _write_pictures(folder: Path, trial: Trial, pictures: Sequence[Picture]) -> None:
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
