"""What shares cost next to a picture per block, and how far the two rankings agree.

    python -m benchmarks.attribution [--rounds 5]

after `make run`, on the demo's LoRA. Costs are counted in forward passes of the transformer (a
forward and a backward pass count three), for the prompts, seeds, nodes and noise levels of
params.yaml, and in seconds: one batch of each kind, taken turn by turn so that a busy machine slows
both, the median of the rounds times the number of batches. The rankings are those of
data/evaluate/blocks.csv.
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
RANKINGS: Final = {
    "isolate: recovery of the block alone": "only_recovery",
    "isolate: MSE of the block alone": "only_mse_to_none",
    "ablation: MSE without the block": "without_mse_to_full",
    "prior: |Delta W| / |W|": "prior",
}


def passes(params: Params, blocks: int) -> dict[str, int]:
    """Return the forward passes, one picture or probe each, that the two ways take."""
    pictures = len(params.prompts.develop) * len(params.prompts.seeds)
    probes = pictures * len(params.attribute.sigmas)
    drawn = pictures * params.sampling.steps
    return {
        "isolate": (blocks + 2) * drawn,
        "shares": drawn + 2 * probes + params.attribute.nodes * probes * (1 + BACKWARD),
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
        "isolate": (drawn - begun) / sampling.steps,
        "shares": time.perf_counter() - drawn,
    }


def report(params: Params, rounds: int) -> list[str]:
    """Return the lines of the report."""
    adapter = ROOT / params.split.adapter
    source = read_adapter(adapter)
    prompts, blocks = name_prompts(params.prompts).develop, len(source.blocks)
    scene = set_scene(WEIGHTS, adapter, prompts[:1], params.model, params.sampling)
    with open_crew(scene) as crew:
        timed = [batch_seconds(crew, prompts[0], params, blocks) for _ in range(rounds)]
    counted = passes(params, blocks)
    forward = median(one["isolate"] for one in timed) / params.sampling.batch
    node = median(one["shares"] for one in timed) / params.sampling.batch
    probes = len(params.prompts.develop) * len(params.prompts.seeds) * len(params.attribute.sigmas)
    swept = counted["isolate"] * forward
    backward = params.attribute.nodes * probes
    shared = (counted["shares"] - backward * (1 + BACKWARD)) * forward + backward * node
    lines = [
        "| | isolate sweep | shares | ratio |",
        "|---|---|---|---|",
        f"| forward passes | {counted['isolate']:,} | {counted['shares']:,} |"
        f" {counted['isolate'] / counted['shares']:.1f} |",
        f"| seconds | {swept:.0f} | {shared:.0f} | {swept / shared:.1f} |",
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
