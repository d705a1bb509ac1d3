"""Two blocks whose relation is known, planted in nano-flux: numbers, and the pictures.

    python -m benchmarks.planted --page docs/planted.md

makes four LoRAs (benchmarks/planting.py), draws their pictures with the code of the stages on
prompts and seeds that took no part in the fit, and measures what the block lens says of them. One
contact sheet per plant lies beside the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch

from benchmarks.planted_page import Found, Row, write_page
from benchmarks.planting import (
    Ground,
    Seed,
    constant_reader,
    difference_reader,
    fit_up,
    measure_response,
    prepare_ground,
    recolouring,
    whisper,
)
from benchmarks.subjects import ROOT, base_manifest
from stages.adapters.files import write_adapter
from stages.adapters.module import Adapter
from stages.contracts.params import Params, load_params
from stages.imaging.metrics import Picture, mse, recovery
from stages.lens.attribution import block_shares, measure_effect
from stages.lens.interaction import measure_interaction
from stages.runtime.console import prepare_process
from stages.runtime.crew import open_crew
from stages.sampling.adapted_generator import load_generator
from stages.sampling.probes import ask_crew, make_probes
from stages.sampling.prompts import NamedPrompt
from stages.sampling.session import set_scene
from stages.slimming.trial import Renderer

FIRST, SECOND, THIRD = 26, 31, 34
"""Single blocks: late ones, whose effect on the velocity is nearly linear."""
FIT: Final = (
    NamedPrompt("fit-0", "a large green square on the right, striped cyan background"),
    NamedPrompt("fit-1", "a small red star at the top, plain purple background"),
)
SHOWN: Final = (
    NamedPrompt("show-0", "a large orange circle in the middle, plain cyan background"),
    NamedPrompt("show-1", "a medium pink star on the left, striped green background"),
)
SEEDS: Final = (0, 1)
FIT_SIGMAS: Final = (0.3, 0.6, 0.9, 1.0)
MORE_RED: Final = (55.0, -10.0, 0.0)
LESS_GREEN: Final = (0.0, -75.0, 0.0)
REDDER: Final = (60.0, -60.0, 0.0)
BLUER: Final = (-25.0, -25.0, 50.0)
PURPLE: Final = (10.0, -70.0, 70.0)
"""Changes of R, G and B, of 255."""
LOUDNESS: Final = 10.0
"""Of the whisper, in standard deviations of what is there anyway."""
HALVES: Final = (
    "halves",
    "Each does half, independently",
    f"single.{FIRST} writes more red, single.{SECOND} less green.",
    "shares 1/2 and 1/2; alone and without, half; interaction 0 between them, 1/2 with itself.",
)
TOGETHER: Final = (
    "together",
    "They only work together",
    f"single.{FIRST} whispers; single.{SECOND} listens, and writes red where it hears.",
    "shares 1/2 and 1/2; nothing alone, and so nothing without; all four products 1/4.",
)
TWINS: Final = (
    "twins",
    "Both do the same, once is enough",
    f"Both write blue; single.{FIRST} whispers that it has, and single.{SECOND}, where it hears, "
    "writes as much of the opposite.",
    "shares 1/2 and 1/2; all alone, and so all without; all four products 1/4.",
)
UNDONE: Final = (
    "undone",
    "One undoes the other, a third works",
    f"single.{FIRST} writes red, single.{SECOND} the opposite of what that does, "
    f"single.{THIRD} purple.",
    f"shares s, -s and 1; single.{THIRD} alone does all; a negative product of the first two, as "
    "large as each has with itself.",
)


@dataclass(frozen=True)
class Plant:
    """A LoRA by its name, what its blocks are made to do, and what arithmetic says of that."""

    name: str
    title: str
    told: str
    expected: str
    seeds: tuple[Seed, ...]

    def adapter(self) -> Adapter:
        """Return it as stages take it."""
        return Adapter({seed.module: seed.pair() for seed in self.seeds}, {})


def writer(block: int) -> str:
    """Return the layer with which a single block writes."""
    return f"single_transformer_blocks.{block}.proj_out"


def make_plants(ground: Ground) -> tuple[Plant, ...]:
    """Return the four plants of docs/lens.md, fitted at the states of `ground`."""
    ear = f"single_transformer_blocks.{SECOND}.attn.to_v"
    first, second, third = (writer(block) for block in (FIRST, SECOND, THIRD))
    # A single block's last layer reads [attention, feed-forward]; the ear changes the attention.
    width = ground.generator.architecture.width
    downs = {name: constant_reader(ground.inputs(name), width) for name in (first, second, third)}
    responses = {
        name: measure_response(ground, name, downs[name], heard)
        for name, heard in ((first, ear), (second, second), (third, third))
    }

    def writes(name: str, wanted: torch.Tensor) -> Seed:
        return Seed(name, downs[name], fit_up(responses[name], wanted))

    natural = ground.inputs(ear)
    quiet = Seed(first, downs[first], whisper(responses[first], natural, LOUDNESS))
    hearing = difference_reader(natural, ground.inputs(ear, [quiet]))
    listening = measure_response(ground, ear, hearing, ear, [quiet])
    more_red, less_green, redder, bluer, purple = (
        recolouring(ground, change) for change in (MORE_RED, LESS_GREEN, REDDER, BLUER, PURPLE)
    )

    own = writes(first, bluer)
    loud, twin = replace(own, up=own.up + quiet.up), writes(second, bluer)
    told = difference_reader(natural, ground.inputs(ear, [loud]))
    again = ground.velocity([loud, twin]) - ground.velocity([loud])

    pushes = writes(first, redder)
    pushed = ground.velocity([pushes]) - ground.velocity()
    return (
        Plant(*HALVES, (writes(first, more_red), writes(second, less_green))),
        Plant(*TOGETHER, (quiet, Seed(ear, hearing, fit_up(listening, redder)))),
        Plant(*TWINS, (loud, twin, Seed(ear, told, fit_up(listening, -again)))),
        Plant(*UNDONE, (pushes, writes(second, -pushed), writes(third, purple))),
    )


def examine(plant: Plant, folder: Path, params: Params, shots: Sequence[tuple[str, int]]) -> Found:
    """Return what the lens says of a plant, and its pictures; its file is put into `folder`."""
    adapter, path = plant.adapter(), folder / f"{plant.name}.safetensors"
    write_adapter(path, adapter)
    blocks, count = adapter.blocks, len(adapter.blocks)
    lens, sampling = params.attribute, params.sampling
    with open_crew(set_scene(base_manifest(folder), path, SHOWN, params.model, sampling)) as crew:
        probes = make_probes(crew, count, shots, lens.sigmas, sampling)
        effect = measure_effect(ask_crew(crew, probes), len(probes), count, sampling.batch)
        shares = block_shares(effect, lens.nodes, sampling.batch).mean(axis=0)
        products = np.mean([*measure_interaction(effect, sampling.batch)], axis=0)
        alone = np.eye(count)
        gates = [np.zeros(count), np.ones(count), *alone, *(1.0 - alone)]
        drawn = Renderer(crew, count, sampling).draw(shots, gates)
    names = ["none", "full", *(f"only {b}" for b in blocks), *(f"without {b}" for b in blocks)]
    pictures = dict(zip(names, drawn, strict=True))
    none, full = drawn[:2]
    rows = tuple(
        Row(
            str(block),
            float(share),
            isolate=_mean(recovery, pictures[f"only {block}"], none, full),
            isolate_mse=_mean(mse, pictures[f"only {block}"], full),
            without=_mean(recovery, pictures[f"without {block}"], none, full),
            ablation_mse=_mean(mse, pictures[f"without {block}"], full),
        )
        for block, share in zip(blocks, shares, strict=True)
    )
    said = (plant.name, plant.title, plant.told, plant.expected)
    first = {variant: made[:: len(shots) // len(SHOWN)] for variant, made in pictures.items()}
    return Found(*said, rows, products, _mean(mse, none, full), first)


def _mean(measure: Callable[..., float], *pictures: Sequence[Picture]) -> float:
    return float(np.mean([measure(*each) for each in zip(*pictures, strict=True)]))


def plant_all(params: Params, seeds: Sequence[int], folder: Path) -> list[Found]:
    """Return all four plants, examined on prompts x `seeds`; their files are put into `folder`."""
    sampling = params.sampling
    bare = load_generator(ROOT / "data" / "nano-flux", FIT, params.model, sampling)
    ground = prepare_ground(bare, [(one.name, 0) for one in FIT], FIT_SIGMAS, sampling)
    shots = [(prompt.name, seed) for prompt in SHOWN for seed in seeds]
    plants = make_plants(ground)
    return [examine(plant, folder, params, shots) for plant in plants]


def main() -> None:
    """Plant, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--page", type=Path, required=True)
    arguments = parser.parse_args()
    prepare_process()
    params = load_params(ROOT / "params.yaml")
    settings = (
        f"Recoveries and MSEs are means over {len(SHOWN)} prompts x {len(SEEDS)} seeds at "
        f"{params.sampling.steps} steps; noise levels and nodes are those of `params.yaml`."
    )
    with TemporaryDirectory() as folder:
        found = plant_all(params, SEEDS, Path(folder))
    write_page(arguments.page, found, settings)


if __name__ == "__main__":
    main()
