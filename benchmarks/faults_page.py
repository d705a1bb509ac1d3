"""The page of benchmarks/faults.py: every case as it went, and words that hold for any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from benchmarks.fault_project import BLOCKS, PICTURES, QUICK, Undisturbed

TITLES: Final = {
    "dvc": "kill -9 of `dvc`, its stage left to itself",
    "group": "kill -9 of all processes of the run at once: a power cut",
    "worker": "kill -9 of Prefect's worker",
    "server": "kill -9 of Prefect's server",
    "dask-worker": "kill -9 of one of two Dask workers",
    "disk": "the disk is full, and then is not",
    "clock": "the clock is set 400 days on or back in the middle of a stage",
    "times": "a power cut, and then every file is of 2038, or of 1990",
}
_INTRODUCTION: Final = """\
# Faults

Written by `python -m benchmarks.faults --out FOLDER --page docs/faults.md`; do not edit.

Each case takes a small project as it was before some stage, runs it, strikes, and gives the
documented command at once. **Same** means: `dvc.lock`, every file in `data/` and every object of
DVC's cache have the bytes of a run that nobody disturbed; no process, no resumable state and no
temporary file is left. Stage and moment are drawn from a seed, uniformly over the seconds of the
undisturbed run. *After* counts from when the stage's process was there: a struck stage may be
importing its libraries, working or writing, or DVC may be at its own work (*between stages*).
*Ran again* are the stages that the second command ran. The first case of each fault computes all
that is left; in the others DVC's run cache had what comes after the struck stage, which it gives
only where the inputs have the same bytes.

The project has all stages and nano-flux, {pictures} training pictures, a LoRA on {blocks} blocks
and {steps} training steps; undisturbed, its stages took {seconds:.0f} s on a machine that others
used. All runs had one thread.
"""
_NOTES: Final = {
    "dvc": "The stage ends when its `dvc` does, and saves its state if it has any; the stage of "
    "the next `dvc repro` waits for it.",
    "worker": "`make serve` ends with a message when the worker dies, and all that it started "
    "ends, too. `make serve` again marks the run `Crashed` at once; then comes the next command.",
    "server": "The worker ends with its server, the run with its worker, the stage with its run; "
    "then `make serve` again, and the next command.",
    "dask-worker": "Another worker is started, and takes over the item. In the cases with *work* "
    "the seconds count from when both workers were ready; in the others a worker may be killed "
    "while it starts.",
    "disk": "A tmpfs with room for the project as it was and for a random part of what the stage "
    "writes. In the first case DVC's database and all temporary files are on it, too, and DVC "
    "fails before any stage runs. *Said* is how the first run ended. Where the disk fills while "
    "DVC stores an output, DVC's own temporary file stays in the cache, under a name that is no "
    "hash.",
    "clock": "libfaketime in all processes of the run; the monotonic clock goes on, as it does "
    "when a clock is set. Twice the run goes on; twice the power is cut one second later, and the "
    "run continued with the right clock.",
}


def write_page(page: Path, results: Path, undisturbed: Undisturbed) -> None:
    """Write the page from the cases in a folder."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        cases.setdefault(case["kind"], []).append(case)
    introduction = _INTRODUCTION.format(
        pictures=PICTURES,
        blocks=len(BLOCKS),
        steps=QUICK["train"]["steps"],
        seconds=sum(undisturbed.seconds.values()),
    )
    parts = [introduction, _summary(cases)]
    for kind, title in TITLES.items():
        if kind in cases:
            note = f"{_NOTES[kind]}\n\n" if kind in _NOTES else ""
            parts.append(f"## {title[0].upper()}{title[1:]}\n\n{note}{_table(cases[kind])}")
        else:
            parts.append(f"## {title[0].upper()}{title[1:]}\n\nNot run on this machine.\n")
    page.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _summary(cases: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| fault | cases | same |", "|---|---:|---:|"]
    for kind, title in TITLES.items():
        if found := cases.get(kind):
            same = sum(not case["problems"] for case in found)
            lines.append(f"| {title} | {len(found)} | {same} |")
    return "\n".join(lines) + "\n"


def _table(cases: list[dict[str, Any]]) -> str:
    said = any(case["said"] for case in cases)
    lines = [f"| struck | after s | next command | ran again | same |{' said |' if said else ''}"]
    lines += [f"|---|---:|---|---|---|{'---|' if said else ''}"]
    for case in cases:
        between = "DVC, before" if case["kind"] == "disk" else "between stages, after"
        struck = case["stage"] or f"{between} {case['started']}"
        after = f"{case['after_s']:.1f}" if case["kind"] != "disk" else "-"
        same = "yes" if not case["problems"] else "**no**: " + "; ".join(case["problems"][:3])
        if case["kind"] == "dask-worker" and case["number"] % 2 == 0:
            after += ", work"
        command = case["command"] if case["command"].startswith("none") else f"`{case['command']}`"
        cells = [struck, after, command, ", ".join(case["again"]) or "-", same]
        cells += [case["said"].replace("|", "/")] if said else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
