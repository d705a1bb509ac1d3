"""Seconds and memory of a training step at FLUX.1's real shape, next to the least it could take.

    python -m benchmarks.flux_shape --json flux-shape.json
    python -m benchmarks.flux_shape --tiny          the whole path at nano's shape, on a CPU

Needs a GPU, `pip install 'blocklens[gpu]'`, and no weights: they are random, made and quantised on
the GPU. Every combination of size, format of the base model, blocks recomputed or not, and blocks
compiled (diffusers' compile_repeated_blocks) or not runs in a process of its own, with a time
limit. One that runs out of memory or time, or fails, is a row that says so. While one is measured
the next one imports its libraries. All 32 are meant to take under ten minutes on an H100 with
80 GB; --sizes, --formats and --no-compile choose fewer.

The JSON file is written after every row. Run again with the same file, the script goes on with the
rows it lacks, if card and version of torch are the same.

The floor is the step's FLOP, counted (benchmarks/flux_floor.py), over the rate that the card is
measured to have on bfloat16 products of the shapes of FLUX's layers at that size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from benchmarks.flux_floor import Work, step_work
from benchmarks.flux_step import Case, recipe, shape_of
from benchmarks.memory import GIB, Step

ROOT: Final = Path(__file__).parents[1]
SIZES_PX: Final = (512, 1024)
TINY_SIZES_PX: Final = (64, 128)
NAMES: Final = {"none": "bf16", "fp8": "fp8", "int8": "int8", "nf4": "nf4"}
TERA: Final = 1e12
MEASURED: Final = "measured"
# One thread each: the next process starts beside the measured one.
TINY_ENVIRONMENT: Final = {
    "BLOCKLENS_DEVICE": "cpu",
    "BLOCKLENS_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
MEMORY_WORDS: Final = ("out of memory", "allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how."""

    cases: Sequence[Case]
    rank: int
    steps: int
    limit_s: float
    tiny: bool


class Child:
    """A process that imports its libraries at once and then waits for its request."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment
        )

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Return the answer with `outcome: measured`, or an outcome that says why there is none."""
        try:
            said, complaint = self._process.communicate(json.dumps(request) + "\n", limit_s)
        except subprocess.TimeoutExpired:
            self.stop()
            return {"outcome": f"not done in {limit_s:g} s"}
        if self._process.returncode:
            return {"outcome": reason(self._process.returncode, complaint)}
        return {**json.loads(said.splitlines()[-1]), "outcome": MEASURED}

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()


def reason(code: int, complaint: str) -> str:
    """Return in a few words why a process with this exit code and error output failed."""
    if any(words in complaint for words in MEMORY_WORDS):
        return "out of memory"
    if code < 0:
        return f"killed by signal {-code}"
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    problem = next((line for line in lines if line.startswith("- ")), "")
    return f"failed: {problem.removeprefix('- ') or (lines or ['no message'])[-1]}"[:200]


def children(count: int, tiny: bool) -> Generator[Child]:
    """Give `count` processes, each started while the one before is still measured."""
    command = [sys.executable, "-m", "benchmarks.flux_step", *(["--tiny"] if tiny else [])]
    environment = {**os.environ, **(TINY_ENVIRONMENT if tiny else {})}
    waiting: list[Child] = []
    try:
        for left in reversed(range(count)):
            current = waiting.pop() if waiting else Child(command, environment)
            if left:
                waiting.append(Child(command, environment))
            yield current
    finally:
        for child in waiting:
            child.stop()


def works(plan: Plan) -> dict[tuple[int, bool], Work]:
    """Return the work of each size, with and without blocks that are computed again."""
    config, params = shape_of(plan.tiny), recipe(plan.tiny, plan.rank)
    tokens, train = params.model.text_tokens, params.train
    return {
        (size_px, again): step_work(
            config, Step(size_px, 1, tokens, plan.rank, train.targets, "bfloat16", again)
        )
        for size_px, again in sorted({(case.size_px, case.checkpointing) for case in plan.cases})
    }


def run(plan: Plan, path: Path | None) -> dict[str, Any]:
    """Return all results; after each row they are written to `path`, which may hold some."""
    processes = children(1 + len(plan.cases), plan.tiny)
    try:
        results = {**floors(plan, next(processes)), "rank": plan.rank, "steps": plan.steps}
        results["rows"] = rows_so_far(path, results)
        done = [{name: row[name] for name in vars(plan.cases[0])} for row in results["rows"]]
        for case in plan.cases:
            if asdict(case) in done:
                continue
            request = {"case": asdict(case), "rank": plan.rank, "steps": plan.steps}
            row = {**asdict(case), **next(processes).ask(request, plan.limit_s)}
            results["rows"].append(row)
            sys.stderr.write(f"{json.dumps(row)}\n")
            if path is not None:
                path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    finally:
        processes.close()
    return results


def floors(plan: Plan, process: Child) -> dict[str, Any]:
    """Return the machine's name, and for each size the least seconds that a step can take."""
    counted = works(plan)
    shapes = {
        size_px: [[list(shape), count] for shape, count in work.shapes.items()]
        for (size_px, _), work in counted.items()
    }
    answer = process.ask({"shapes": shapes}, plan.limit_s)
    if answer["outcome"] != MEASURED:
        raise SystemExit(f"The rate of matrix products: {answer['outcome']}")
    found = []
    for (size_px, again), work in counted.items():
        rate = answer["flop_per_s"][str(size_px)]
        floor = {"size_px": size_px, "checkpointing": again, "flop": work.flop}
        found.append({**floor, "flop_per_s": rate, "floor_s": work.flop / rate})
    return {"machine": answer["machine"], "floors": found}


def rows_so_far(path: Path | None, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an earlier, unfinished run on the same machine."""
    if path is None or not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    same = all(old[name] == results[name] for name in ("machine", "rank", "steps"))
    rows: list[dict[str, Any]] = old["rows"] if same else []
    return rows


def table(results: Mapping[str, Any]) -> str:
    """Return the results as two Markdown tables: the floors, and all rows against them."""
    least = {(each["size_px"], each["checkpointing"]): each for each in results["floors"]}
    lines = [
        "| pixels | blocks recomputed | TFLOP a step | measured TFLOP/s | floor, s |",
        "|---:|---|---:|---:|---:|",
    ]
    for (size_px, again), floor in least.items():
        rate, flop = floor["flop_per_s"] / TERA, floor["flop"] / TERA
        start = f"| {size_px} | {_yes(again)} "
        lines.append(f"{start}| {flop:.3g} | {rate:.3g} | {floor['floor_s']:.3g} |")
    lines += [
        "",
        "| pixels | base | blocks recomputed | compiled | s a step | times the floor | peak GiB "
        "| first step, s |",
        "|---:|---|---|---|---:|---:|---:|---:|",
    ]
    for row in sorted(results["rows"], key=_order):
        again, size_px = row["checkpointing"], row["size_px"]
        start = f"| {size_px} | {NAMES[row['quantisation']]} | {_yes(again)} "
        start += f"| {_yes(row['compiled'])} "
        if row["outcome"] != MEASURED:
            lines.append(f"{start}| {row['outcome'].replace('|', '/')} | | | |")
            continue
        times = row["step_s"] / least[size_px, again]["floor_s"]
        numbers = f"| {row['step_s']:.3f} | {times:.2f} | {row['peak_bytes'] / GIB:.1f} "
        lines.append(f"{start}{numbers}| {row['first_s']:.1f} |")
    card = results["machine"]
    lines += ["", f"{card['device']}, torch {card['torch']}, rank {results['rank']}, batch 1"]
    return "\n".join(lines) + "\n"


def _order(row: Mapping[str, Any]) -> tuple[int, int, bool, bool]:
    place = list(NAMES).index(row["quantisation"])
    return (row["size_px"], place, row["checkpointing"], row["compiled"])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def cases(sizes_px: Sequence[int], formats: Sequence[str], *, compiled: bool) -> list[Case]:
    """Return all combinations; those that compile nothing come first, being quick."""
    kinds = product((False, True) if compiled else (False,), sizes_px, formats, (True, False))
    return [Case(size, name, again, whole) for whole, size, name, again in kinds]


def tiny_cases() -> list[Case]:
    """Return a few combinations in which every branch is taken; nf4 says that it needs a GPU."""
    small, large = TINY_SIZES_PX
    return [
        Case(small, "none", checkpointing=False, compiled=False),
        Case(large, "fp8", checkpointing=True, compiled=False),
        Case(small, "nf4", checkpointing=True, compiled=False),
        Case(small, "none", checkpointing=False, compiled=True),
    ]


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="nano's shape, on a CPU, four rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_PX, metavar="PIXELS")
    parser.add_argument("--formats", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled rows")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each row")
    parser.add_argument("--limit", type=float, default=150, help="seconds for each row")
    parser.add_argument("--json", type=Path, help="write the results here, after every row")
    given = parser.parse_args()
    chosen = cases(given.sizes, given.formats, compiled=not given.no_compile)
    if given.tiny:
        chosen = tiny_cases()
    plan = Plan(chosen, given.rank, given.steps, given.limit, given.tiny)
    sys.stdout.write(table(run(plan, given.json)))


if __name__ == "__main__":
    main()
