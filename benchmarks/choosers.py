"""Every chooser of blocks on three LoRAs: how small a file reaches the asked recovery.

    python -m benchmarks.choosers --out FOLDER [--page docs/choosers.md] [--loras demo style object]

The LoRAs are the demo's (data/train, after `make run`), a style and another object
(benchmarks/subjects.py). Each chooser puts the blocks in an order; the set taken is the smallest
whose pictures of the development prompts recover params slim.recovery at the lower bound, as stage
slim does it; held-out prompts and seeds judge it. Every picture's numbers and every probe's are
kept in FOLDER, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.choosers_page import write_page
from benchmarks.subjects import ROOT, SUBJECTS, subject_params, train_subject
from stages.adapters.base_weights import open_linear_weights
from stages.adapters.files import read_adapter
from stages.adapters.module import Adapter
from stages.adapters.norms import block_norms
from stages.adapters.partition import split_by_block
from stages.contracts.params import Params, load_params
from stages.imaging.metrics import mse
from stages.lens.attribution import Effect, block_shares, measure_effect
from stages.lens.interaction import lost, measure_interaction
from stages.lens.rankings import Resampling
from stages.runtime.console import prepare_process
from stages.runtime.crew import open_crew
from stages.sampling.probes import ask_crew, make_probes
from stages.sampling.prompts import name_prompts
from stages.sampling.session import set_scene
from stages.sampling.variants import Variant, gate_values, only, without
from stages.slimming.choosers import COLUMNS, Choosing, Measured, order_blocks
from stages.slimming.refitting import crossed_strengths, size_strengths
from stages.slimming.trial import Renderer, Shots, Trial, draw_references, find_size

BASE: Final = ROOT / "data" / "nano-flux"
WEIGHTS: Final = ROOT / "data" / "fetch" / "manifest.json"
SIGMAS: Final = (0.3, 0.5, 0.7, 0.9, 0.97)
RIDGE: Final = 1.0


@dataclass(frozen=True)
class Way:
    """A chooser; whether it counts what a byte does, and the ridge of refitted strengths."""

    chooser: str
    per_byte: bool = False
    ridge: float | None = None

    @property
    def name(self) -> str:
        """The name in tables."""
        return (
            self.chooser
            + (", per byte" if self.per_byte else "")
            + (", refitted" if self.ridge is not None else "")
        )


WAYS: Final = (
    Way("interaction", per_byte=True, ridge=RIDGE),
    Way("isolate-mse"),
    Way("interaction", per_byte=True),
    Way("isolate-mse", ridge=RIDGE),
    Way("shares"),
    Way("norm", per_byte=True),
    Way("random"),
    Way("isolate-mse", per_byte=True),
    Way("shares", per_byte=True),
    Way("isolate", per_byte=True),
    Way("greedy"),
    Way("interaction", ridge=RIDGE),
    Way("ablation", per_byte=True),
    Way("shrinking", per_byte=True),
)
"""The default first, then what people do by hand."""
_log = logging.getLogger(__name__)


class Kept:
    """A JSON file that grows: what it has is never measured again."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def put(self, key: str, value: object) -> None:
        """Add a value and write the file."""
        self.values[key] = value
        self._path.write_text(json.dumps(self.values, sort_keys=True))


@dataclass(frozen=True)
class Bench:
    """One LoRA with all that its sets of blocks are judged by."""

    name: str
    params: Params
    source: Adapter
    sizes: list[int]
    folder: Path
    renderer: Renderer
    develop: Trial
    held_out: Trial

    @property
    def resampling(self) -> Resampling:
        """The bootstrap of stage slim."""
        slim = self.params.slim
        return Resampling(slim.resamples, slim.confidence, slim.seed)

    def measure(self, strengths: np.ndarray, crossed: np.ndarray) -> list[float]:
        """Return the recoveries of development shots, then of held-out ones.

        Args:
            strengths: [blocks], for the held-out shots.
            crossed: [prompts, blocks], for the development shots.
        """
        kept = Kept(self.folder / "sets.json")
        key = set_key(strengths)
        if key not in kept.values:
            rows = self.develop.shots.of_prompts(crossed)
            (found,) = self.renderer.measure(self.develop, [rows])
            kept.put(key, found + self.renderer.measure(self.held_out, [strengths])[0])
        values: list[float] = kept.values[key]
        return values


def set_key(strengths: np.ndarray) -> str:
    """Return the name of strengths [blocks] in files: the columns that are on, or all strengths."""
    if np.isin(strengths, (0.0, 1.0)).all():
        return json.dumps(np.flatnonzero(strengths).tolist())
    return json.dumps(strengths.tolist())


def strengths_of(key: str, blocks: int) -> np.ndarray:
    """Return the strengths [blocks] that `set_key` names."""
    values = json.loads(key)
    if any(isinstance(value, float) for value in values):
        return np.array(values)
    strengths = np.zeros(blocks)
    strengths[values] = 1.0
    return strengths


@contextmanager
def open_bench(name: str, out: Path) -> Iterator[Bench]:
    """Yield the bench of a LoRA: `demo`, or the name of a subject, trained where it is not yet."""
    subjects = {subject.name: subject for subject in SUBJECTS}
    params = (
        subject_params(subjects[name]) if name in subjects else load_params(ROOT / "params.yaml")
    )
    path = train_subject(subjects[name], out) if name in subjects else ROOT / params.split.adapter
    source, named = read_adapter(path), name_prompts(params.prompts)
    develop = Shots(named.develop, tuple(params.prompts.seeds))
    held_out = Shots(named.held_out, tuple(params.prompts.held_out_seeds))
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [4 * part.parameters for part in split_by_block(source).values()]
    every = (*named.develop, *named.held_out)
    # Batches are always full: one larger than what is asked for would be padded.
    sampling = params.sampling.model_copy(update={"batch": len(develop)})
    with open_crew(set_scene(WEIGHTS, path, every, params.model, sampling)) as crew:
        renderer = Renderer(crew, len(source.blocks), sampling)
        trials = draw_references(renderer, (develop, held_out), path)
        yield Bench(name, params, source, sizes, folder, renderer, *trials)


def measure_probes(bench: Bench, sigmas: Sequence[float]) -> Effect:
    """Return the LoRA's effect on the development shots at these noise levels."""
    renderer = bench.renderer
    shots, sampling = [*bench.develop.shots], renderer.sampling
    probes = make_probes(renderer.crew, renderer.blocks, shots, sigmas, sampling)
    ask = ask_crew(renderer.crew, probes)
    return measure_effect(ask, len(probes), renderer.blocks, sampling.batch)


def products(bench: Bench) -> np.ndarray:
    """Return <u_b, u_c> [shots, sigmas, blocks, blocks] of every probe; kept in a file."""
    path = bench.folder / "products.npy"
    if not path.is_file():
        measured = measure_interaction(measure_probes(bench, SIGMAS), bench.renderer.sampling.batch)
        np.save(path, np.stack([*measured]))
    shape = (len(bench.develop.shots), len(SIGMAS), len(bench.sizes), len(bench.sizes))
    found: np.ndarray = np.load(path).reshape(shape)
    return found


def block_scores(bench: Bench, column: str) -> list[float]:
    """Return the score of each block in a column of the block table; kept in a file.

    The demo's are those of stage evaluate, where they are at hand.
    """
    table = ROOT / "data" / "evaluate" / "blocks.csv"
    names = [str(block) for block in bench.source.blocks]
    if bench.name == "demo" and table.is_file():
        found: list[float] = pd.read_csv(table).set_index("block").loc[names, column].tolist()
        return found
    kept = Kept(bench.folder / "singles.json")
    if column == "share":
        if column not in kept.values:
            attribute = bench.params.attribute
            effect = measure_probes(bench, attribute.sigmas)
            shares = block_shares(effect, attribute.nodes, bench.renderer.sampling.batch)
            kept.put(column, shares.mean(axis=0).tolist())
        shared: list[float] = kept.values[column]
        return shared
    if column == "relative_norm":
        with open_linear_weights(BASE) as linears:
            norms = block_norms(bench.source, linears.read)
        return [norms[block].relative for block in bench.source.blocks]
    kind, _, measure = column.partition("_")
    return [
        picture_scores(bench, kept, only(block) if kind == "only" else without(block))[measure]
        for block in bench.source.blocks
    ]


def picture_scores(bench: Bench, kept: Kept, variant: Variant) -> dict[str, float]:
    """Return what the development pictures of a variant say, means over prompts and seeds."""
    name = str(variant)
    if name not in kept.values:
        trial, gates = bench.develop, gate_values(variant, bench.source.blocks)
        (drawn,) = bench.renderer.draw([*trial.shots], [gates])
        errors = {
            "mse_to_none": [mse(one, other) for one, other in zip(drawn, trial.none, strict=True)],
            "mse_to_full": [mse(one, other) for one, other in zip(drawn, trial.full, strict=True)],
            "recovery": trial.recoveries(drawn),
        }
        kept.put(name, {measure: float(np.mean(values)) for measure, values in errors.items()})
    found: dict[str, float] = kept.values[name]
    return found


def guessed_products(bench: Bench) -> np.ndarray:
    """Return <u_b, u_c> [prompts, blocks, blocks], means over the probes that stage slim takes."""
    used = [SIGMAS.index(sigma) for sigma in bench.params.slim.sigmas]
    by_shot = products(bench)[:, used].mean(axis=1)
    shape = (len(bench.develop.shots.prompts), -1, *by_shot.shape[1:])
    by_prompt: np.ndarray = by_shot.reshape(shape).mean(axis=1)
    return by_prompt


def chosen_strengths(bench: Bench, way: Way) -> tuple[np.ndarray, np.ndarray]:
    """Return the strengths of every size that a chooser takes, as stage slim does.

    Those of the file [blocks + 1, blocks], and those that judge [blocks + 1, prompts, blocks].
    """
    kept = Kept(bench.folder / "orders.json")
    if way.name not in kept.values:
        kept.put(way.name, [*_order(bench, way)])
    order, by_prompt = kept.values[way.name], guessed_products(bench)
    strengths = size_strengths(order, by_prompt.mean(axis=0), way.ridge)
    return strengths, crossed_strengths(order, by_prompt, way.ridge)


def _order(bench: Bench, way: Way) -> tuple[int, ...]:
    slim = bench.params.slim
    if way.chooser == "random":
        return tuple(np.random.default_rng(0).permutation(len(bench.sizes)).tolist())
    column = COLUMNS.get(way.chooser)
    scores = block_scores(bench, column) if column is not None else None
    probed = way.chooser in ("greedy", "shrinking")
    effect = measure_probes(bench, slim.sigmas if probed else SIGMAS[:1])
    choosing = Choosing(
        way.chooser,
        way.per_byte,
        way.ridge,
        slim.candidates,
        slim.nodes,
        bench.renderer.sampling.batch,
    )
    mean = guessed_products(bench).mean(axis=0)
    return order_blocks(choosing, Measured(effect, mean, scores), bench.sizes)


def judge_way(bench: Bench, way: Way) -> dict[str, Any]:
    """Return the row of one chooser: the set it takes, and how that does on held-out prompts."""
    strengths, crossed = chosen_strengths(bench, way)
    count = len(bench.develop.shots)
    size, tried = find_size(
        bench.develop,
        len(bench.sizes),
        bench.params.slim.recovery,
        1,
        bench.resampling,
        lambda sizes: [bench.measure(strengths[size], crossed[size])[:count] for size in sizes],
    )
    measured = bench.measure(strengths[size], crossed[size])
    held_out = bench.held_out.judge(measured[count:], bench.resampling)
    return {
        "chooser": way.name,
        "blocks": size,
        "bytes": share_of_bytes(bench, strengths[size]),
        "develop": tried[size].recovery,
        "develop_low": tried[size].low,
        "held_out": held_out.recovery,
        "held_out_low": held_out.low,
    }


def share_of_bytes(bench: Bench, strengths: np.ndarray) -> float:
    """Return the bytes of the blocks that are on, over those of all."""
    return float(np.array(bench.sizes)[strengths != 0.0].sum() / sum(bench.sizes))


def curve_rows(bench: Bench) -> list[dict[str, Any]]:
    """Return bytes and recoveries of every size of a chooser that has pictures."""
    kept = Kept(bench.folder / "sets.json").values
    count = len(bench.develop.shots)
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        if way.name not in Kept(bench.folder / "orders.json").values:
            continue
        rows += [
            {
                "chooser": way.name,
                "bytes": share_of_bytes(bench, strengths),
                "develop": float(np.mean(kept[key][:count])),
                "held_out": float(np.mean(kept[key][count:])),
            }
            for strengths in chosen_strengths(bench, way)[0][1:-1]
            if (key := set_key(strengths)) in kept
        ]
    return rows


def sigma_table(bench: Bench) -> list[dict[str, Any]]:
    """Return, per noise level, how its guesses of L agree with the pictures' 1 - recovery."""
    kept = Kept(bench.folder / "sets.json").values
    measured, count = products(bench), len(bench.develop.shots)
    rows = []
    for places, label in [
        *(([place], f"{sigma:g}") for place, sigma in enumerate(SIGMAS)),
        ([SIGMAS.index(sigma) for sigma in bench.params.slim.sigmas], "slim.sigmas"),
        ([*range(len(SIGMAS))], "all"),
    ]:
        guessed, seen = [], []
        for key, values in kept.items():
            strengths = strengths_of(key, len(bench.sizes))
            for shot in range(count):
                guessed.append(lost(measured[shot, places].mean(axis=0), strengths))
                seen.append(1.0 - values[shot])
        rows.append(
            {
                "sigmas": label,
                "pictures": len(seen),
                "rank_correlation": float(pd.Series(guessed).corr(pd.Series(seen), "spearman")),
                "guess": float(np.mean(guessed)),
                "seen": float(np.mean(seen)),
            }
        )
    return rows


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--loras", nargs="+", default=["demo", *(one.name for one in SUBJECTS)])
    parser.add_argument("--ways", type=int, default=len(WAYS), help="how many of the choosers")
    arguments = parser.parse_args()
    prepare_process()
    for name in arguments.loras:
        with open_bench(name, arguments.out) as bench:
            rows = []
            for way in WAYS[: arguments.ways]:
                rows.append(judge_way(bench, way))
                _log.info("%s", rows[-1])
                tables = {"rows": rows, "curve": curve_rows(bench), "sigmas": sigma_table(bench)}
                (bench.folder / "tables.json").write_text(json.dumps(tables, indent=1))
    if arguments.page is not None:
        write_page(arguments.page, [arguments.out / name for name in arguments.loras])


if __name__ == "__main__":
    main()
