"""A disk that is full: the part of benchmarks/faults.py that runs on a small tmpfs.

    python -m benchmarks.fault_disk PROJECT FOLDER BYTES RESULT OTHERS

is what `run_cases` starts in a mount namespace of its own, which root has and user namespaces give:
mounts a tmpfs with room for PROJECT and BYTES more, runs `dvc repro` in a copy there until the disk
is full, makes room, runs it again, and copies what came of it to RESULT. DVC's own database and the
temporary files of all processes are in OTHERS: on that disk in the first case, where DVC fails
before any stage runs, and elsewhere in the others, so that stages meet the end.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.fault_project import Undisturbed, difference, environment, lend_later_stages
from benchmarks.faults import DVC, LIMIT_S, Case, last_words, moment
from tests.small_run import stages_run

KIND: Final = "disk"
ENOUGH: Final = "1g"
_PAGE: Final = 4096
_NAMESPACE: Final = ("unshare", "--mount", "--map-root-user")


def run_cases(undisturbed: Undisturbed, folder: Path, times: int) -> Iterator[Case]:
    """Run the project on disks that are full sooner or later, as far as mounts are allowed."""
    results = folder.parents[1] / "cases"
    allowed = subprocess.run(
        [*_NAMESPACE, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, check=False
    )
    if allowed.returncode != 0:
        return
    for number in range(times):
        if not (results / f"{KIND}-{number}.json").is_file():
            yield _run_case(undisturbed, folder, number)


def _run_case(undisturbed: Undisturbed, folder: Path, number: int) -> Case:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stage, _ = moment(undisturbed, KIND, number)
    before = undisturbed.before[stage]
    names = list(undisturbed.before)
    after = [undisturbed.before[name] for name in names[names.index(stage) + 1 :]]
    needed = _bytes((after or [undisturbed.project])[0]) - _bytes(before)
    room = int(random.Random(f"{KIND}-{number}").uniform(0.05, 0.95) * needed)
    if number > 0:
        before = shutil.copytree(before, folder / "before", symlinks=True)
        lend_later_stages(undisturbed, before, stage)
    arguments = [before, folder / "disk", room, folder / "project"]
    arguments.append(folder / ("disk" if number == 0 else "elsewhere"))
    done = subprocess.run(
        [*_NAMESPACE, sys.executable, "-m", __name__, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=2 * LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    told = json.loads(done.stdout.splitlines()[-1])
    case = Case(KIND, number, stage, **told)
    case.problems += difference(folder / "project", undisturbed.project)
    return case


def main() -> None:
    """Run on a disk that is too small, then on one that is not, and print what happened."""
    before, disk, room, result, others = map(Path, sys.argv[1:])
    disk.mkdir()
    others.mkdir(exist_ok=True)
    size = _bytes(before) + int(room.name)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)
    project = disk / "project"
    shutil.copytree(before, project, symlinks=True)
    settings = environment() | {
        "TMPDIR": str(_made(others / "temporary")),
        "DVC_SITE_CACHE_DIR": str(_made(others / "database")),
    }
    command = {"cwd": project, "env": settings, "capture_output": True, "text": True}
    first = subprocess.run(DVC, timeout=LIMIT_S, check=False, **command)  # type: ignore[call-overload]
    subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", str(disk)], check=True)
    second = subprocess.run(DVC, timeout=LIMIT_S, check=False, **command)  # type: ignore[call-overload]
    problems = [] if first.returncode else ["the disk was large enough"]
    if second.returncode:
        problems.append(f"the command failed: {last_words(second.stdout + second.stderr)}")
    told = {
        "stage": stages_run(first.stdout)[-1] if stages_run(first.stdout) else None,
        "said": last_words((first.stdout + first.stderr).replace(f"{project}/", "")),
        "again": stages_run(second.stdout),
        "problems": problems,
    }
    shutil.copytree(project, result, symlinks=True)
    sys.stdout.write(json.dumps(told) + "\n")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _bytes(folder: Path) -> int:
    """Return the bytes of a folder on a disk of pages."""
    sizes = (path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // _PAGE) * _PAGE for size in sizes)


if __name__ == "__main__":
    main()
