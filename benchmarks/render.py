"""The pictures of the block lens, made by stage render's code and by the loop people would write.

    python -m benchmarks.render data/train/adapter.safetensors
    python -m benchmarks.render data/train/adapter.safetensors --rounds 4     a part of it

59 variants (`none`, `full` and every block alone) of 4 pictures each (2 prompts x 2 seeds) on
nano-flux. The loop is diffusers and PEFT alone: a FluxPipeline with the LoRA loaded once, each
block's scale set through PEFT's layers, one call per picture. The two take turns in one process,
four variants at a time, so that both meet the same load of the machine; each round's ratio is
taken by itself. On a machine that others use, too, seconds of the processor say more than those
of the clock. Both write PNG files, and the files are compared. Peak memory is taken in a process of
its own for each, which draws four variants with one step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import torch
from diffusers import FluxPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from stages.adapters.files import read_adapter
from stages.contracts.blocks import BlockId
from stages.contracts.params import ModelParams, Params, SamplingParams, load_params
from stages.families.architecture import block_of
from stages.imaging.png import encode_png
from stages.runtime.device import DTYPES
from stages.sampling.adapted_generator import adapted, load_generator
from stages.sampling.generation import Job, generate
from stages.sampling.prompts import NamedPrompt
from stages.sampling.variants import FULL, NONE, Variant, gate_values, only

ROOT: Final = Path(__file__).parents[1]
VARIANTS_AT_ONCE: Final = 4
MEBIBYTE_KB: Final = 1024
SEEDS: Final = (0, 1)

Draw = Callable[[Sequence[Variant], Path], None]
"""Draw every prompt and seed of some variants into a folder, as files named alike."""


@dataclass(frozen=True)
class Task:
    """What both draw: a base model's folder, an adapter, prompts and how a picture is made."""

    folder: Path
    adapter: Path
    prompts: tuple[NamedPrompt, ...]
    model: ModelParams
    sampling: SamplingParams

    def shots(self, variants: Sequence[Variant]) -> list[tuple[Variant, NamedPrompt, int, str]]:
        """Return each picture's variant, prompt, seed and file name."""
        return [
            (variant, prompt, seed, f"{variant.file_stem}-{prompt.name}-{seed}.png")
            for variant in variants
            for prompt in self.prompts
            for seed in SEEDS
        ]


@dataclass(frozen=True)
class Round:
    """Seconds that each took for the same pictures, and how far the two sets are apart.

    `ours` and `loop` are seconds of the clock and of the processor, of all its cores together.
    """

    pictures: int
    ours: tuple[float, float]
    loop: tuple[float, float]
    largest_difference: int
    differing_share: float


def nano_task(adapter: Path, params: Params) -> Task:
    """Return the task on nano-flux with the first two development prompts of params.yaml."""
    texts = params.prompts.develop[:2]
    prompts = tuple(NamedPrompt(f"develop-{i}", text) for i, text in enumerate(texts))
    return Task(ROOT / "data" / "nano-flux", adapter, prompts, params.model, params.sampling)


def lens_variants(blocks: Sequence[BlockId]) -> list[Variant]:
    """Return `none`, `full` and every block alone."""
    return [NONE, FULL, *(only(block) for block in blocks)]


def open_ours(task: Task, stack: ExitStack) -> Draw:
    """Return stage render's way, with the model loaded and the prompts embedded."""
    adapter = read_adapter(task.adapter)
    bare = load_generator(task.folder, task.prompts, task.model, task.sampling)
    generator = stack.enter_context(adapted(bare, adapter, task.sampling, compiled=False))

    def draw(variants: Sequence[Variant], out: Path) -> None:
        shots = task.shots(variants)
        jobs = [
            Job(prompt.name, seed, gate_values(variant, adapter.blocks))
            for variant, prompt, seed, _ in shots
        ]
        for index, pixels in generate(generator, jobs, task.sampling):
            (out / shots[index][3]).write_bytes(encode_png(pixels))

    return draw


def open_loop(task: Task, stack: ExitStack) -> Draw:
    """Return the loop with diffusers and PEFT, with the pipeline and the LoRA loaded."""
    blocks = read_adapter(task.adapter).blocks
    pipeline = FluxPipeline.from_pretrained(task.folder, dtype=DTYPES[task.model.precision])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(task.adapter)
    stack.callback(pipeline.unload_lora_weights)
    (name,) = pipeline.get_active_adapters()

    def draw(variants: Sequence[Variant], out: Path) -> None:
        for variant, prompt, seed, file in task.shots(variants):
            _set_scales(
                pipeline, name, dict(zip(blocks, gate_values(variant, blocks), strict=True))
            )
            picture = pipeline(
                prompt.text,
                height=task.sampling.size_px,
                width=task.sampling.size_px,
                num_inference_steps=task.sampling.steps,
                guidance_scale=task.sampling.guidance,
                max_sequence_length=task.model.text_tokens,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
            picture.save(out / file)

    return draw


def _set_scales(pipeline: FluxPipeline, name: str, scales: Mapping[BlockId, float]) -> None:
    for module, layer in pipeline.transformer.named_modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale(name, scales[block_of(module)])


OPENERS: Final = {"ours": open_ours, "loop": open_loop}


def take_turns(task: Task, variants: Sequence[Variant], rounds: int | None) -> list[Round]:
    """Return the rounds, four variants each; the first variant is drawn once before, by both.

    Fewer rounds than there are to take are spread evenly over the variants.
    """
    starts = [*range(0, len(variants), VARIANTS_AT_ONCE)]
    chosen = starts[:: max(1, len(starts) // (rounds or len(starts)))][:rounds]
    parts = [variants[start : start + VARIANTS_AT_ONCE] for start in chosen]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in OPENERS}
        for folder in folders.values():
            folder.mkdir()
        draws = {name: opener(task, stack) for name, opener in OPENERS.items()}
        for name, draw in draws.items():
            draw(variants[:1], folders[name])
        done = []
        for number, part in enumerate(parts):
            seconds = {}
            names = list(draws) if number % 2 else list(reversed(draws))
            for name in names:
                clock, processor = time.perf_counter(), time.process_time()
                draws[name](part, folders[name])
                taken = time.perf_counter() - clock, time.process_time() - processor
                seconds[name] = taken
            files = [file for *_, file in task.shots(part)]
            largest, share = _compare(files, folders["ours"], folders["loop"])
            done.append(Round(len(files), seconds["ours"], seconds["loop"], largest, share))
            sys.stderr.write(f"round {number + 1} of {len(parts)}: {done[-1]}\n")
    return done


def _compare(files: Sequence[str], ours: Path, theirs: Path) -> tuple[int, float]:
    """Return the largest difference in grey levels, and the share of values that differ."""
    gaps = np.stack([np.abs(_levels(ours / file) - _levels(theirs / file)) for file in files])
    return int(gaps.max()), float((gaps > 0).mean())


def _levels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def peak_memory(adapter: Path, which: str) -> int:
    """Return the peak memory, in MiB, of a process that draws four variants its own way."""
    command = [sys.executable, "-m", "benchmarks.render", str(adapter), "--memory-of", which]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["peak_mb"])


def own_peak(task: Task, variants: Sequence[Variant], which: str) -> int:
    """Return the peak memory, in MiB, of this process after it has drawn `variants`."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as temporary:
        OPENERS[which](task, stack)(variants, Path(temporary))
    # Not getrusage's: that begins with the memory of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // MEBIBYTE_KB


def report(rounds: Sequence[Round], peaks: Mapping[str, int], threads: int) -> str:
    """Return the table of docs/benchmarks.md."""
    pictures = sum(one.pictures for one in rounds)
    totals = {
        "ours": [sum(part) for part in zip(*(one.ours for one in rounds), strict=True)],
        "loop": [sum(part) for part in zip(*(one.loop for one in rounds), strict=True)],
    }
    names = {"ours": "stage render", "loop": "loop over pipeline calls"}
    lines = [
        "| what | pictures | s/picture | processor s/picture | peak memory |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {names[key]} | {pictures} | {clock / pictures:.2f} | {processor / pictures:.2f} | "
        f"{peaks[key]} MB |"
        for key, (clock, processor) in totals.items()
    ]
    clocks, processors = ([one.loop[k] / one.ours[k] for one in rounds] for k in (0, 1))
    lines += [
        "",
        f"The loop takes {median(clocks):.2f} times as long ({min(clocks):.2f} to "
        f"{max(clocks):.2f}, {len(rounds)} rounds) and {median(processors):.2f} times the "
        f"processor ({min(processors):.2f} to {max(processors):.2f}), threads: {threads}. Pictures "
        f"differ by at most {max(one.largest_difference for one in rounds)} grey levels, in "
        f"{100 * max(one.differing_share for one in rounds):.4f} % of values.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Take the turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--rounds", type=int, help="of 15; all without it")
    parser.add_argument("--memory-of", choices=sorted(OPENERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    adapter = arguments.adapter.resolve()
    task = nano_task(adapter, load_params(ROOT / "presets" / "nano-flux.yaml"))
    variants = lens_variants(read_adapter(adapter).blocks)
    if arguments.memory_of:
        quick = replace(task, sampling=task.sampling.model_copy(update={"steps": 1}))
        peak = own_peak(quick, variants[:VARIANTS_AT_ONCE], arguments.memory_of)
        sys.stdout.write(json.dumps({"peak_mb": peak}) + "\n")
        return
    rounds = take_turns(task, variants, arguments.rounds)
    peaks = {which: peak_memory(adapter, which) for which in OPENERS}
    sys.stdout.write(report(rounds, peaks, torch.get_num_threads()) + "\n")


if __name__ == "__main__":
    main()
