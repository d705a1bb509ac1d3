"""What shares cost next to a picture per block, and how far the two rankings agree.

    python -m benchmarks.attribution [--rounds 5]

after `make run`, on the demo's LoRA. Costs are counted in forward passes of the transformer (a
forward and a backward pass count three), for the nodes and noise levels of params.yaml, and in
seconds: one batch of each kind, taken turn by turn so that a busy machine slows both, the median of
the rounds times the number of batches. The isolate sweep is that of the same prompts and seeds, and
next to it that of stage render, which has fewer. The rankings are of data/evaluate/blocks.csv.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Final

import pandas as pd
import torch

from stages.adapters.files import read_adapter
from stages.contracts.params import Params, load_params
from stages.families.streams import STREAMS
from stages.lens.attribution import block_shares, measure_effect
from stages.lens.statistics import rank_tau
from stages.runtime.console import prepare_process
from stages.runtime.crew import Crew, open_crew
from stages.sampling.generation import Job
from stages.sampling.probes import ask_crew, make_probes
from stages.sampling.prompts import NamedPrompt, name_prompts
from stages.sampling.session import Session, finish_latents, set_scene

ROOT: Final = Path(__file__).parents[1]
WEIGHTS: Final = ROOT / "data" / "fetch" / "manifest.json"
BACKWARD: Final = 2
"""A backward pass in forward passes: it multiplies by each weight's transpose, and by inputs."""
SAME, RENDERED, SHARES = "isolate, same pictures", "isolate, as rendered", "shares"
RANKINGS: Final = {
    "isolate: recovery of the block alone": "only_recovery",
    "isolate: MSE of the block alone": "only_mse_to_none",
    "ablation: MSE without the block": "without_mse_to_full",
    "prior: |Delta W| / |W|": "prior",
}


def passes(params: Params, blocks: int) -> dict[str, int]:
    """Return the forward passes, one picture or probe each, that each way takes."""
    attribute, prompts, steps = params.attribute, params.prompts, params.sampling.steps
    shown = (len(prompts.develop) + len(attribute.prompts)) * len(attribute.seeds)
    probes = shown * len(attribute.sigmas)
    return {
        SAME: (blocks + 2) * shown * steps,
        RENDERED: (blocks + 2) * len(prompts.develop) * len(prompts.seeds) * steps,
        SHARES: shown * steps + 2 * probes + attribute.nodes * probes * (1 + BACKWARD),
    }


def batch_seconds(
    crew: Crew[Session], prompt: NamedPrompt, params: Params, blocks: int
) -> dict[str, float]:
    """Return the seconds of one batch: a step of pictures with one block each, a node of shares."""
    sampling, attribute = params.sampling, params.attribute
    name = prompt.name
    eye = torch.eye(blocks).tolist()
    jobs = [Job(name, seed, tuple(eye[seed % blocks])) for seed in range(sampling.batch)]
    shots = [(name, seed) for seed in range(sampling.batch)]
    probes = make_probes(crew, blocks, shots, attribute.sigmas[:1], sampling)
    effect = measure_effect(ask_crew(crew, probes), len(probes), blocks, sampling.batch)
    begun = time.perf_counter()
    list(crew.each(finish_latents, [(sampling.batch, jobs)]))
    drawn = time.perf_counter()
    block_shares(effect, 1, sampling.batch, len(STREAMS))
    return {
        RENDERED: (drawn - begun) / sampling.steps,
        SHARES: time.perf_counter() - drawn,
    }


def report(params: Params, rounds: int) -> list[str]:
    """Return the lines of the report."""
    adapter = ROOT / params.split.adapter
    source = read_adapter(adapter)
    prompts, blocks = name_prompts(params.prompts).develop, len(source.blocks)
    scene = set_scene(WEIGHTS, adapter, prompts[:1], params.model, params.sampling)
    with open_crew(scene) as crew:
        timed = [batch_seconds(crew, prompts[0], params, blocks) for _ in range(rounds)]
    counted, attribute = passes(params, blocks), params.attribute
    forward = median(one[RENDERED] for one in timed) / params.sampling.batch
    node = median(one[SHARES] for one in timed) / params.sampling.batch
    shown = (len(prompts) + len(attribute.prompts)) * len(attribute.seeds)
    backward = attribute.nodes * shown * len(attribute.sigmas)
    seconds = {way: passes * forward for way, passes in counted.items()}
    seconds[SHARES] += backward * (node - (1 + BACKWARD) * forward)
    lines = [
        "| | forward passes | as many as shares | seconds | as long as shares |",
        "|---|---|---|---|---|",
        *(
            f"| {way} | {passes:,} | {passes / counted[SHARES]:.1f} | {seconds[way]:.0f} |"
            f" {seconds[way] / seconds[SHARES]:.1f} |"
            for way, passes in counted.items()
        ),
        "",
        "| ranking | Kendall tau-b with the shares |",
        "|---|---|",
    ]
    table = pd.read_csv(ROOT / "data" / "evaluate" / "blocks.csv")
    for name, column in RANKINGS.items():
        lines.append(
            f"| {name} | {rank_tau(table['share'].tolist(), table[column].tolist()):.2f} |"
        )
    return lines


def main() -> None:
    """Measure and write to the terminal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prepare_process()
    sys.stdout.write("\n".join(report(load_params(ROOT / "params.yaml"), arguments.rounds)) + "\n")


if __name__ == "__main__":
    main()
