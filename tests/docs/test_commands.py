"""The commands of README and docs work.

Run, in a small copy of the project, in the order in which they stand: every fence marked `sh run`.
That is all ten steps of docs/first-lora.md, and then the commands of the other pages that look at
what they made, those in running text (LOOKING) too.

Only checked, since they need the Hub, a GPU, a server, minutes or somebody's names: all others.
`python -m ...` and `dvc ...` are parsed by their own parsers up to the point where the work would
begin, with the stages and parameters that they name; `make` targets, deployments, copied files and
extras must exist. Other programs (git, docker, hf, dask ...) are not checked.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from docs.writers.pictures import LARGEST_BYTES
from tests.browser import require_chromium
from tests.docs.commands import (
    FOREIGN,
    LOOKING,
    RUN,
    checked_commands,
    commands_of,
    program_of,
    run_blocks,
)
from tests.docs.commands import words_of as words
from tests.docs.pages import PAGES, ROOT, fences, name_of
from tests.repositories import git
from tests.small_run import clone, environment, run

TEN_STEPS = ROOT / "docs/first-lora.md"
OTHERS = [page for page in PAGES if page != TEN_STEPS and run_blocks(page)]
CHECKED = [
    shown for page in PAGES if page.name != "CHANGELOG.md" for shown in checked_commands(page)
]
LOOKS = sorted({line for one in CHECKED if LOOKING.fullmatch(line := shlex.join(words(one.line)))})
UNFINISHED = re.compile(r"arguments are required|expected (one|at least one) argument")
"""What a parser says of a command that running text only names."""
FILLED_IN = {
    "BASE": "main",
    "CONFIG": "theirs.yaml",
    "HEAD": "nightly",
    "OWNER/NAME": "somebody/something",
    "PARAMS": "params-from-theirs.yaml",
    "FILE": "data/train/adapter.safetensors",
}
"""What stands for what the reader fills in; OUT is a new file each time."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the project with quick presets/nano-flux.yaml and own pictures."""
    folder = clone(tmp_path_factory.mktemp("pages") / "clone")
    shutil.copy2(folder / "params.yaml", folder / "presets/nano-flux.yaml")
    for split, count in (("train", 8), ("validation", 2)):
        own = folder / "data/mine" / split
        own.mkdir(parents=True)
        files = sorted((folder / "data/demo" / split).iterdir())
        names = sorted({path.stem for path in files})[:count]
        for path in files:
            if path.stem in names:
                shutil.copy2(path, own)
    return folder


@pytest.fixture(scope="module")
def finished(project: Path) -> Path:
    """The same after the ten steps, committed on two branches."""
    for block in run_blocks(TEN_STEPS):
        run_block(project, block)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "ten steps")
    git(project, "branch", "--move", "main")
    git(project, "branch", "nightly")
    return project


@pytest.mark.slow
def test_the_ten_steps_run(finished: Path) -> None:
    """Whoever follows docs/first-lora.md to the letter has a LoRA and a slim one at the end."""
    assert len(run_blocks(TEN_STEPS)) > 8
    assert (finished / "data/slim/adapter-slim.safetensors").is_file()
    assert (finished / "zub-slim-kohya.safetensors").is_file()
    assert "zub" in (finished / "data/report/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS, ids=name_of)
def test_other_pages_run(finished: Path, page: Path) -> None:
    """Examples that look at a finished run do so here, after the ten steps."""
    for block in run_blocks(page):
        run_block(finished, block)


@pytest.mark.slow
@pytest.mark.parametrize("line", LOOKS)
def test_commands_that_look_run(finished: Path, line: str) -> None:
    """In running text, too, README's among them."""
    run_block(finished, line)


@pytest.mark.slow
def test_pictures_are_cut_from_a_report(finished: Path, tmp_path: Path) -> None:
    """`make docs` finds every section that docs/reading-the-report.md shows, and keeps it small."""
    require_chromium()
    asked = ["docs.writers.pictures", "--report", str(finished / "data/report/index.html")]
    done = run(finished, *asked, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    committed = sorted(path.name for path in (ROOT / "docs").glob("report-*.jpg"))
    assert sorted(path.name for path in tmp_path.iterdir()) == committed
    for path in [*tmp_path.iterdir(), *(ROOT / "docs" / name for name in committed)]:
        assert path.stat().st_size < LARGEST_BYTES, path


def run_block(folder: Path, block: str) -> None:
    """Run a block in a shell that stops at its first failure."""
    for name, value in FILLED_IN.items():
        block = re.sub(rf"\b{name}\b", value, block)
    lines = [
        re.sub(r"\bOUT\b", f"out-{number}.safetensors", line)
        for number, line in enumerate(commands_of(block))
    ]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"


def test_commands_are_found() -> None:
    """The loops run over something, and README has its part."""
    assert len(CHECKED) > 100
    assert {"docs/review.md", "docs/publishing.md"} <= set(map(name_of, OTHERS))
    assert {"dvc metrics diff", "dvc plots show", "dvc exp show"} <= set(LOOKS)
    assert {"README.md", "docs/sharing.md", "docs/serving.md"} <= {one.page for one in CHECKED}
    assert len(OTHERS) >= 2


def test_a_block_of_commands_has_nothing_else() -> None:
    """A misspelt program in a block marked `sh` would otherwise be taken for prose."""
    known = {"python", "dvc", "make", "prefect", *FOREIGN}
    strange = [
        (name_of(page), line)
        for page in PAGES
        for fence in fences(page)
        if fence.info in ("sh", RUN)
        for line in commands_of(fence.body)
        if program_of(line) not in known
    ]
    assert not strange


def test_programs_of_ours_take_these_arguments() -> None:
    """Modules, flags, stages and parameters that a page names exist."""
    asked = [shown for shown in CHECKED if program_of(shown.line) in ("python", "dvc")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.parsing"],
        cwd=ROOT,
        env=environment(),
        input=json.dumps([words(shown.line) for shown in asked]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    faults = json.loads(done.stdout)
    assert len(faults) == len(asked) > 60
    assert not [
        (shown, fault)
        for shown, fault in zip(asked, faults, strict=True)
        if fault and not (shown.named and UNFINISHED.search(fault))
    ]


def test_targets_deployments_presets_and_extras_exist() -> None:
    """The same for what is looked up rather than parsed."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w[\w-]*):", makefile, flags=re.M))
    variables = set(re.findall(r"\$\((\w+)\)", makefile))
    prefect = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    deployments = {one["name"] for one in prefect["deployments"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    missing = []
    for shown in CHECKED:
        program, *rest = words(shown.line)
        exists = {
            "make": lambda rest=rest: (
                rest[0] in targets and {one.partition("=")[0] for one in rest[1:]} <= variables
            ),
            "prefect": lambda rest=rest: (
                rest[:2] != ["deployment", "run"] or rest[2].partition("/")[2] in deployments
            ),
            "cp": lambda rest=rest: (ROOT / rest[0]).is_file(),
            "pip": lambda rest=rest: (
                set(re.findall(r"blocklens\[(\w+)\]", " ".join(rest))) <= extras
            ),
        }
        if program in exists and not exists[program]():
            missing.append(shown)
    assert not missing
