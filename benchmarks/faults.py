"""What a kill, a full disk or a wrong clock costs, and whether the same dvc.lock comes of it.

    python -m benchmarks.faults --out FOLDER --page docs/faults.md [--only dvc disk] [--times 5]

Runs a small project once undisturbed. Then, for each case, takes the project as it was before some
stage, runs it, strikes at a moment drawn from a seed and from the seconds of the undisturbed run,
at once gives the command that the documentation names, and compares dvc.lock, every file in data/
and every object of DVC's cache with those of the undisturbed run. The first case of each kind
computes all stages that are left; the others find those after the struck one in DVC's run cache,
where their inputs are the same. Cases that FOLDER has from an
earlier call are not run again; the page is written of all that are there.

Needs Linux. `disk` needs root or user namespaces for its tmpfs, `clock` libfaketime (Debian's
faketime): without them these cases are left out, and the page says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.fault_project import (
    Undisturbed,
    difference,
    end_processes,
    environment,
    lend_later_stages,
    processes_in,
    running_stage,
    undisturbed_run,
    wait_for,
)
from tests.small_run import stages_run

DVC: Final = (sys.executable, "-m", "dvc", "repro")
LIMIT_S: Final = 900.0
STRUCK: Final = {
    "dask-worker": ("render", "attribute", "slim"),  # those with workers
    "clock": ("encode", "train", "render", "attribute", "slim"),  # those that take their time
}
FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
FUTURE: Final = "+400d"
PAST: Final = "-400d"


@dataclass
class Case:
    """What was struck when, what the next command was, and what came of it.

    `stage` is the one that ran at that moment, `after_s` the seconds since the project was in
    `started` and its process was there. `again` are the stages that the next command ran.
    """

    kind: str
    number: int
    started: str
    after_s: float = 0.0
    stage: str | None = None
    command: str = "dvc repro"
    again: list[str] = field(default_factory=list)
    said: str = ""
    problems: list[str] = field(default_factory=list)


Strike = Callable[[Path, Case, "subprocess.Popen[bytes]"], None]


def moment(undisturbed: Undisturbed, kind: str, number: int) -> tuple[str, float]:
    """Return a stage, and seconds since its process is there: uniform over the seconds it has."""
    stages = [stage for stage in undisturbed.seconds if stage in STRUCK.get(kind, (stage,))]
    drawn = random.Random(f"{kind}-{number}")
    at = drawn.uniform(0.0, sum(undisturbed.seconds[stage] for stage in stages))
    for stage in stages:
        if at < undisturbed.seconds[stage]:
            return stage, at
        at -= undisturbed.seconds[stage]
    return stages[-1], undisturbed.seconds[stages[-1]]


def start(
    project: Path, log: Path, settings: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `dvc repro` in a session of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            DVC,
            cwd=project,
            env=environment() | dict(settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def go_on(project: Path, case: Case, settings: Mapping[str, str] | None = None) -> None:
    """Run `dvc repro` to its end, and note which stages it ran and what it said if it failed."""
    done = subprocess.run(
        DVC,
        cwd=project,
        env=environment() | dict(settings or {}),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    case.again = stages_run(done.stdout)
    if done.returncode != 0:
        case.problems.append(f"the command failed: {last_words(done.stdout + done.stderr)}")


def last_words(text: str) -> str:
    """Return the end of what a command said, without progress, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-400:]


def reach(project: Path, case: Case, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the case's moment; return False if the run ended before.

    Every other Dask worker is given the time to start first: that takes as long as the work here.
    """

    def going() -> bool:
        return process.poll() is None

    if not wait_for(lambda: running_stage(project) == case.started, LIMIT_S, going):
        return False
    if case.kind == "dask-worker" and case.number % 2 == 0:
        log = project.with_name("log")
        wait_for(lambda: b": 2 workers" in log.read_bytes(), LIMIT_S, going)
    wait_for(lambda: False, case.after_s, going)
    case.stage = running_stage(project)
    return going()


def kill_dvc(project: Path, case: Case, process: subprocess.Popen[bytes]) -> None:
    """Kill the process of `dvc repro` alone, and start it again at once."""
    process.kill()
    process.wait()
    go_on(project, case)


def kill_group(project: Path, case: Case, process: subprocess.Popen[bytes]) -> None:
    """Kill all processes of the run at once, as a power cut does, and start it again."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    go_on(project, case)


def kill_worker(project: Path, case: Case, process: subprocess.Popen[bytes]) -> None:
    """Kill one of the workers of the stage's own Dask cluster; nobody does anything then."""
    drawn = random.Random(f"worker-{case.number}")

    def workers() -> list[int]:
        found = processes_in(project).items()
        return sorted(pid for pid, words in found if "--multiprocessing-fork" in words)

    if wait_for(workers, LIMIT_S, lambda: process.poll() is None):
        case.stage = running_stage(project)
        os.kill(drawn.choice(workers()), signal.SIGKILL)
    else:
        case.problems.append("no worker was there to be killed")
    case.command = "none: the run goes on"
    if process.wait(timeout=LIMIT_S) != 0:
        case.problems.append("the run did not go on")


def change_times(at: float) -> Strike:
    """Return a strike: a power cut, after which every file is of another time."""

    def strike(project: Path, case: Case, process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in project.rglob("*"):
            if path.is_file() and not path.is_symlink():
                os.utime(path, (at, at))
        go_on(project, case)

    return strike


def turn_clock(offset: str, *, cut: bool) -> Strike:
    """Return a strike: the clock of all processes jumps, with or without a power cut after it."""

    def strike(project: Path, case: Case, process: subprocess.Popen[bytes]) -> None:
        clock = project.with_name("clock")
        clock.write_text(offset)
        if not cut:
            case.command = "none: the run goes on"
            if process.wait(timeout=LIMIT_S) != 0:
                case.problems.append("the run did not go on")
            return
        time.sleep(1.0)  # something is written by the wrong clock
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        go_on(project, case)  # by the right one

    return strike


KINDS: Final[dict[str, tuple[str, list[Strike]]]] = {
    "dvc": ("kill -9 of `dvc`", [kill_dvc] * 5),
    "group": ("kill -9 of the whole process group", [kill_group] * 5),
    "dask-worker": ("kill -9 of a Dask worker", [kill_worker] * 5),
    "clock": (
        "the clock jumps 400 days on, or back; twice the run goes on, twice the power is cut",
        [turn_clock(when, cut=cut) for cut in (False, True) for when in (FUTURE, PAST)],
    ),
    "times": (
        "power cut, then every file is of 2038, or of 1990",
        [change_times(at) for at in (2145916800.0, 631152000.0)],
    ),
}
"""By kind: its words, and a strike for each case. `served` and `disk` have modules of their own."""


def run_case(undisturbed: Undisturbed, folder: Path, kind: str, number: int) -> Case:
    """Strike once, and compare what comes of it with the undisturbed run."""
    stage, after_s = moment(undisturbed, kind, number)
    while True:
        case = Case(kind, number, stage, round(after_s, 1))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        project = folder / "project"
        shutil.copytree(undisturbed.before[stage], project, symlinks=True)
        if number > 0:
            lend_later_stages(undisturbed, project, stage)
        settings = settings_of(kind, folder)
        process = start(project, folder / "log", settings)
        if reach(project, case, process):
            break
        end_processes(project)
        after_s *= 0.7  # it was quicker than the undisturbed run
    KINDS[kind][1][number](project, case, process)
    left = end_processes(project)
    case.problems += [f"still running: {command}" for command in left]
    case.problems += difference(project, undisturbed.project)
    return case


def settings_of(kind: str, folder: Path) -> dict[str, str]:
    """Return what the environment of a case's first run has beside that of all runs."""
    if kind == "dask-worker":
        return {"BLOCKLENS_DASK": "local:2"}
    if kind == "clock":
        (folder / "clock").write_text("+0")
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a clock that is set does not change that one
            "NO_FAKE_STAT": "1",
        }
    return {}


def main() -> None:
    """Run the cases that are missing, and write the page."""
    from benchmarks import fault_disk, fault_serving, faults_page

    others = {"disk": fault_disk.run_cases, "served": fault_serving.run_cases}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of projects and results")
    parser.add_argument("--page", type=Path, help="the page to write")
    parser.add_argument("--only", nargs="*", choices=[*KINDS, *others], default=[*KINDS, *others])
    parser.add_argument("--times", type=int, default=5, help="cases of each kind, at most")
    options = parser.parse_args()
    out = options.out.resolve()
    undisturbed = undisturbed_run(out / "small")
    results = out / "cases"
    results.mkdir(exist_ok=True)
    for kind in options.only:
        if kind in others:
            cases = others[kind](undisturbed, out / "at" / kind, options.times)
        elif kind == "clock" and not FAKETIME.is_file():
            continue
        else:
            numbers = range(min(options.times, len(KINDS[kind][1])))
            cases = (
                run_case(undisturbed, out / "at" / kind, kind, number)
                for number in numbers
                if not (results / f"{kind}-{number}.json").is_file()
            )
        for case in cases:
            text = json.dumps(dataclasses.asdict(case), indent=1) + "\n"
            (results / f"{case.kind}-{case.number}.json").write_text(text, encoding="utf-8")
            sys.stdout.write(f"{case}\n")
            sys.stdout.flush()
    if options.page:
        faults_page.write_page(options.page, results, undisturbed)


if __name__ == "__main__":
    main()
