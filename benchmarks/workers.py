"""A part of the render in this process, by one worker process and by two, one thread each.

    BLOCKLENS_THREADS=1 python -m benchmarks.workers data/train/adapter.safetensors

after `make run`. Items are whole batches of pictures with one block each. The three take turns, so
that all meet the same load of the machine, and each round's ratios are taken by themselves. What
comes back is compared byte for byte. Loading the model is not counted: each worker draws one item
before.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from stages.adapters.files import read_adapter
from stages.contracts.params import load_params
from stages.runtime.console import prepare_process
from stages.runtime.crew import VARIABLE, Crew, Setting, open_crew, ordered
from stages.sampling.generation import Job
from stages.sampling.prompts import name_prompts
from stages.sampling.session import AS_TRAINED, AdapterVersion, Session, draw, set_scene
from stages.sampling.variants import gate_values, only

ROOT: Final = Path(__file__).parents[1]
PLACES: Final = {"this process": "", "1 worker": "local:1", "2 workers": "local:2"}

Batch = tuple[AdapterVersion, list[Job]]


@dataclass(frozen=True)
class Task:
    """What all draw, and how."""

    setting: Setting[Session]
    batches: tuple[Batch, ...]


def nano_task(adapter: Path, items: int, steps: int) -> Task:
    """Return `items` batches of the nano preset, in pictures of fewer steps."""
    params = load_params(ROOT / "presets" / "nano-flux.yaml")
    sampling = params.sampling.model_copy(update={"steps": steps})
    prompts = name_prompts(params.prompts).develop[:1]
    blocks = read_adapter(adapter).blocks
    scene = set_scene(
        ROOT / "data" / "fetch" / "manifest.json", adapter, prompts, params.model, sampling
    )
    # Of one block a batch, as in stage render.
    batches = [
        [
            Job(prompts[0].name, seed, gate_values(only(blocks[item % len(blocks)]), blocks))
            for seed in range(sampling.batch)
        ]
        for item in range(items)
    ]
    return Task(scene, tuple((AS_TRAINED, jobs) for jobs in batches))


@contextmanager
def crew_at(place: str, task: Task) -> Iterator[Crew[Session]]:
    """Yield the crew at a place, every worker with its model loaded."""
    os.environ[VARIABLE] = place
    with open_crew(task.setting) as crew:
        list(ordered(crew, draw, task.batches[:4]))
        yield crew


def take_turns(task: Task, rounds: int) -> tuple[dict[str, list[float]], bool]:
    """Return the seconds of every round by who drew, and whether all drew the same."""
    seconds: dict[str, list[float]] = {name: [] for name in PLACES}
    same = True
    with ExitStack() as stack:
        crews = {name: stack.enter_context(crew_at(place, task)) for name, place in PLACES.items()}
        for number in range(rounds):
            drawn = {}
            for name in [*PLACES][:: 1 if number % 2 else -1]:
                begun = time.perf_counter()
                drawn[name] = np.stack(list(ordered(crews[name], draw, task.batches)))
                seconds[name].append(time.perf_counter() - begun)
            same &= len({pictures.tobytes() for pictures in drawn.values()}) == 1
            taken = {name: round(each[-1], 1) for name, each in seconds.items()}
            sys.stderr.write(f"round {number + 1} of {rounds}: {taken}\n")
    return seconds, same


def report(task: Task, seconds: dict[str, list[float]], same: bool) -> Sequence[str]:
    """Return the lines of docs/several-machines.md."""
    pictures = sum(len(jobs) for _, jobs in task.batches)
    alone = seconds["this process"]
    lines = ["| who | s/picture | times as fast as this process |", "|---|---:|---:|"]
    for name, each in seconds.items():
        ratios = [one / other for one, other in zip(alone, each, strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {median(each) / pictures:.3f} | {spread} |")
    pairs = zip(seconds["1 worker"], seconds["2 workers"], strict=True)
    ratio = median(one / two for one, two in pairs)
    sent = len(pickle.dumps((task.setting, draw, task.batches[0])))
    threads = task.setting.description.threads
    lines += [
        "",
        f"2 workers against 1: {ratio:.2f} times as fast, {len(alone)} rounds of {pictures} "
        f"pictures, threads each: {threads}, pictures are {'the same' if same else 'NOT THE SAME'}."
        f" An item of {len(task.batches[0][1])} pictures takes {sent:,} bytes to a worker.",
    ]
    return lines


def main() -> None:
    """Take the turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--items", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prepare_process()
    task = nano_task(arguments.adapter, arguments.items, arguments.steps)
    seconds, same = take_turns(task, arguments.rounds)
    sys.stdout.write("\n".join(report(task, seconds, same)) + "\n")


if __name__ == "__main__":
    main()
