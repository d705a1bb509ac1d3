"""A small project for benchmarks/faults.py: as it was before each stage, and what is left of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flows.environment import child_environment
from flows.graph import read_plan
from flows.repository import run_git
from tests import small_run

PICTURES: Final = 8
"""So many of the demo's 24 pictures: encoding them all would take as long as training."""
BLOCKS: Final = ("double.0", "double.9", "single.0", "single.19")
QUICK: Final[dict[str, dict[str, Any]]] = {
    "train": {
        "blocks": list(BLOCKS),
        "steps": 9,
        "validation_every": 3,
        "checkpoint_every": 3,
        "sample_every": 9,
    },
    "render": {"groups": {}, "subsets": {}, "strengths": []},
}
ENDED_S: Final = 60.0
"""How long processes of a killed run may still be there."""
_POLL_S: Final = 0.02


@dataclass(frozen=True)
class Undisturbed:
    """A run without faults: its project, the project before each stage, and each stage's seconds.

    `before` are copies with the cache of that time, so that nothing later can come from there.
    """

    project: Path
    before: Mapping[str, Path]
    seconds: Mapping[str, float]


def environment() -> dict[str, str]:
    """Return the environment of all runs: one thread, since threads decide how sums are rounded."""
    threads = {"OMP_NUM_THREADS": "1", "BLOCKLENS_THREADS": "1"}
    return child_environment() | threads | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}


def undisturbed_run(folder: Path) -> Undisturbed:
    """Run every stage of a small project once, and keep the project as it was before each.

    What is there from an earlier call is used again.
    """
    notes, project = folder / "undisturbed.json", folder / "undisturbed"
    if not notes.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        _make_project(project)
        seconds = {}
        for stage in read_plan(project):
            run_git(project, "tag", f"before-{stage.name}")
            shutil.copytree(project, folder / "before" / stage.name, symlinks=True)
            began = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "dvc", "repro", "--single-item", stage.name],
                cwd=project,
                env=environment(),
                stdout=subprocess.DEVNULL,
                check=True,
            )
            seconds[stage.name] = time.monotonic() - began
            _commit(project, stage.name)
        notes.write_text(json.dumps(seconds), encoding="utf-8")
    seconds = json.loads(notes.read_text(encoding="utf-8"))
    return Undisturbed(project, {name: folder / "before" / name for name in seconds}, seconds)


def _make_project(project: Path) -> None:
    project.mkdir(parents=True)
    small_run.clone(project)
    params = small_run.read_params(project)
    for section, values in QUICK.items():
        params[section] |= values
    small_run.write_params(project, params)
    pictures = sorted((project / "data" / "demo" / "train").glob("*.[jp][pn]g"))
    for picture in pictures[PICTURES:]:
        picture.unlink()
        picture.with_suffix(".txt").unlink(missing_ok=True)
    _commit(project, "small")


def _commit(project: Path, message: str) -> None:
    run_git(project, "add", "--all")
    author = ["-c", "user.name=faults", "-c", "user.email=faults@example.org"]
    run_git(project, *author, "commit", "--quiet", "--allow-empty", "--message", message)


def lend_later_stages(undisturbed: Undisturbed, project: Path, stage: str) -> None:
    """Give a project's cache what the stages after `stage` made of the undisturbed run.

    DVC takes it from its run cache where, and only where, their inputs have the same bytes: a run
    that a fault changed computes them itself. Of `stage` and those before there is nothing.
    """
    names = list(undisturbed.before)
    later = names[names.index(stage) + 1 :]
    if not later:
        return
    own, without = undisturbed.project / ".dvc" / "cache", undisturbed.before[later[0]]
    for path in sorted(own.rglob("*")):
        name = path.relative_to(own)
        if path.is_file() and not (without / ".dvc" / "cache" / name).exists():
            lent = project / ".dvc" / "cache" / name
            lent.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, lent)


def processes_in(folder: Path) -> dict[int, list[str]]:
    """Return the command line of each process that works in a folder or below, by its id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            directory = (path / "cwd").readlink()
        except OSError:  # it ended meanwhile
            continue
        if directory.is_relative_to(folder) and command != [""]:
            found[int(path.name)] = command
    return found


def running_stage(folder: Path) -> str | None:
    """Return the name of the stage whose process runs in a folder, or None between two stages."""
    for command in processes_in(folder).values():
        for flag, module in itertools.pairwise(command):
            if flag == "-m" and module.startswith("stages."):
                return module.removeprefix("stages.")
    return None


def wait_for(condition: Callable[[], object], limit_s: float, going: Callable[[], bool]) -> bool:
    """Return whether a condition came to hold in time, while something was going on."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if not going() or time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def end_processes(folder: Path) -> list[str]:
    """Return the processes that still work in a folder after a while; they are killed."""
    wait_for(lambda: not processes_in(folder), ENDED_S, lambda: True)
    left = processes_in(folder)
    for process in left:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return [" ".join(command)[:120] for command in left.values()]


def difference(found: Path, expected: Path, cached: Path | None = None) -> list[str]:
    """Return what is other in a project after a fault than after an undisturbed run, in words.

    `cached` is the project that has DVC's cache, where that is another one.
    """
    problems = []
    if (found / "dvc.lock").read_bytes() != (expected / "dvc.lock").read_bytes():
        problems.append("dvc.lock differs")
    theirs, ours = _files(expected / "data"), _files(found / "data")
    problems += [f"missing: data/{name}" for name in sorted(theirs.keys() - ours.keys())]
    problems += [f"left: data/{name}" for name in sorted(ours.keys() - theirs.keys())]
    problems += [
        f"other bytes: data/{name}"
        for name in theirs
        if ours.get(name, "") not in ("", theirs[name])
    ]
    for state in ("train", "render"):
        left = [path for path in (found / ".blocklens" / state).rglob("*") if path.is_file()]
        problems += [f"left: {path.relative_to(found).as_posix()}" for path in left]
    return problems + _broken_cache(cached or found, expected)


def _broken_cache(found: Path, expected: Path) -> list[str]:
    """Return objects of DVC's cache that are not what their name says, or have no such name."""
    objects, problems = found / ".dvc" / "cache" / "files" / "md5", []
    ours = {path.relative_to(objects) for path in objects.rglob("*") if path.is_file()}
    theirs_in = expected / ".dvc" / "cache" / "files" / "md5"
    theirs = {path.relative_to(theirs_in) for path in theirs_in.rglob("*") if path.is_file()}
    for name in sorted(ours | theirs):
        if name not in ours:
            problems.append(f"missing: .dvc/cache/{name}")
        elif name not in theirs:
            problems.append(f"left: .dvc/cache/{name}")
        elif _md5(objects / name) != name.as_posix().replace("/", "").removesuffix(".dir"):
            problems.append(f"half-written: .dvc/cache/{name}")
    return problems


def _files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): _md5(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
