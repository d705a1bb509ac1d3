"""Seconds and size of the report of the run that is checked out, and whether its bytes stay.

    python -m benchmarks.report [--rounds 3]

Runs the command of stage report, as dvc.yaml has it, into folders of its own. Beside each round it
starts the stage's program for `--help` alone, so that its libraries' part is known.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from flows.environment import child_environment
from flows.graph import run_dvc
from stages.runtime.files import sha256_file

ROOT: Final = Path(__file__).parents[1]


def report_command(out: Path) -> list[str]:
    """Return the command of stage report, writing to `out`."""
    lines = run_dvc(ROOT, "repro", "--dry", "--force", "--single-item", "report").splitlines()
    (line,) = (line.removeprefix("> ") for line in lines if line.startswith("> "))
    words = shlex.split(line)
    words[words.index("--out") + 1] = str(out)
    return [sys.executable, *words[1:]]


def seconds(command: list[str]) -> float:
    """Return the seconds of a command that must succeed."""
    begun = time.perf_counter()
    environment = child_environment()
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    whole, starts, pages = [], [], set()
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            out = Path(name) / str(number)
            whole.append(seconds(report_command(out)))
            starts.append(seconds([sys.executable, "-m", "stages.report", "--help"]))
            page = out / "index.html"
            pages.add(sha256_file(page))
        size = page.stat().st_size
    sys.stdout.write(
        f"report: {median(whole):.1f} s, {median(starts):.1f} s of them to start; one page of "
        f"{size / 1e6:.1f} MB, {'the same bytes' if len(pages) == 1 else 'OTHER BYTES'} in "
        f"{rounds} rounds\n"
    )


if __name__ == "__main__":
    main()
