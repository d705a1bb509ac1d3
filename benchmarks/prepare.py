"""Peak memory and speed of `prepare` on 12-megapixel photographs, next to a plain Pillow loop.

    python -m benchmarks.prepare 200 2000

For each number of pictures: makes a folder of 4000x3000 JPEGs (a handful of different ones, the
others hard links), runs `prepare` in a child process and reports the child's peak memory and the
time from its start to its end. On the largest number it also runs a loop in plain Pillow, in a
child of its own, that does the same to the pixels one picture after the other: open, turn upright,
cut the centre square, scale with Lanczos, save as PNG. The loop is run twice: with PNG settings as
Pillow has them, and with the fastest that Pillow offers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps

from stages.contracts.params import PrepareParams, load_params
from stages.prepare import prepare

ROOT: Final = Path(__file__).parents[1]
SIZE_PX: Final = (4000, 3000)
DIFFERENT: Final = 8
LOOP_PICTURES: Final = 200
FASTEST_PNG: Final = 1


def photograph(seed: int) -> Image.Image:
    """Return a 12-megapixel picture with detail on all scales and a sensor's noise."""
    rng = np.random.default_rng(seed)
    total = np.full((SIZE_PX[1], SIZE_PX[0], 3), 128.0, np.float32)
    for octave, cells in enumerate((4, 12, 36, 108, 324)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        smooth = coarse.resize(SIZE_PX, Image.Resampling.BICUBIC)
        total += (np.asarray(smooth, dtype=np.float32) - 128.0) * 0.6**octave
    total += rng.normal(0, 3, total.shape).astype(np.float32)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def make_pictures(folder: Path, count: int) -> None:
    """Write `count` JPEGs into `folder`; all but a handful are hard links."""
    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if number < DIFFERENT:
            photograph(number).save(path, quality=92)
        else:
            os.link(folder / f"{number % DIFFERENT:05d}.jpg", path)


def run_prepare(folder: Path, out: Path, params: PrepareParams) -> None:
    """Run the stage, half of the pictures' contents held out."""
    prepare(params, images=folder, validation=folder, out=out)


def run_loop(folder: Path, out: Path, params: PrepareParams, level: int | None) -> None:
    """Do the same to the pixels in plain Pillow, one picture after the other."""
    out.mkdir(parents=True)
    for path in sorted(folder.iterdir())[:LOOP_PICTURES]:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        small = square.resize((params.size_px, params.size_px), Image.Resampling.LANCZOS)
        options: dict[str, Any] = {} if level is None else {"compress_level": level}
        small.save(out / f"{path.stem}.png", **options)


def measured(work: Callable[[], None]) -> dict[str, float]:
    """Return seconds and peak memory in MB of `work`, run in this process."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_memory_mb()}


def peak_memory_mb() -> float:
    """Return this process's own peak; getrusage's would be the parent's until it is passed."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def in_child(kind: str, folder: Path, out: Path) -> dict[str, float]:
    """Return what `measured` says in a new process, so that peaks do not mix."""
    command = [sys.executable, "-m", "benchmarks.prepare", "--child", kind, str(folder), str(out)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
    values: dict[str, float] = json.loads(result.stdout)
    return values


def child(kind: str, folder: Path, out: Path) -> None:
    """Do one measurement and print it as JSON."""
    values = load_params(ROOT / "params.yaml").prepare.model_dump()
    same = {"images": "one", "validation_images": "one", "validation_share": 0.5}
    params = PrepareParams.model_validate(values | same)
    level = FASTEST_PNG if kind == "loop-fast" else None
    works = {"prepare": lambda: run_prepare(folder, out, params)}
    works |= dict.fromkeys(("loop", "loop-fast"), lambda: run_loop(folder, out, params, level))
    sys.stdout.write(json.dumps(measured(works[kind])))


def table(counts: Sequence[int]) -> str:
    """Return the results as a Markdown table."""
    rows = ["| what | pictures | pictures/s | peak memory |", "|---|---:|---:|---:|"]
    rates = {}

    def add(name: str, count: int, result: dict[str, float]) -> None:
        rates[name] = count / result["seconds"]
        memory = f"{result['peak_mb']:.0f} MB"
        rows.append(f"| {name} | {count:,} | {rates[name]:.1f} | {memory} |")

    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "pictures"
            make_pictures(folder, count)
            add("prepare", count, in_child("prepare", folder, Path(name) / "out"))
            if count == max(counts):
                loops = {"Pillow loop": "loop", "Pillow loop, fastest PNG": "loop-fast"}
                for title, kind in loops.items():
                    result = in_child(kind, folder, Path(name) / kind)
                    add(title, min(count, LOOP_PICTURES), result)
    slower = [name for name in rates if name != "prepare"]
    ratios = ", ".join(f"{rates['prepare'] / rates[name]:.2f} times the {name}" for name in slower)
    return "\n".join([*rows, "", f"prepare is {ratios}, on {os.cpu_count()} cores."])


def main() -> None:
    """Run a measurement, or as a child one part of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", nargs="*", type=int, default=[200, 2000])
    parser.add_argument("--child", nargs=3, metavar=("KIND", "FOLDER", "OUT"))
    arguments = parser.parse_args()
    if arguments.child:
        kind, folder, out = arguments.child
        child(kind, Path(folder), Path(out))
    else:
        sys.stdout.write(table(sorted(arguments.counts)) + "\n")


if __name__ == "__main__":
    main()
