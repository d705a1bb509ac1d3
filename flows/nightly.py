"""The pipeline unattended: pull data, run what changed, push results, commit them to a branch.

    python -m flows.nightly [--branch nightly]

Meant for the worker's own clone (flows/worker_clone.py). The branch holds dvc.lock, metrics and
small tables on top of the commit that ran; `python -m flows.review main nightly` says what they
mean. A night in which nothing changed makes no commit, and none is made twice while the branch
waits to be merged. Commits of a person on that branch are never replaced.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.command_line import run_to_exit
from flows.graph import run_dvc
from flows.lock_file import locked_outputs
from flows.pipeline import pipeline
from flows.repository import committer, run_git
from stages.contracts.errors import BlocklensError

BRANCH: Final = "nightly"
_TRACKED: Final = ("dvc.lock", "params.yaml", "data")
"""Where a run changes what git has. Of what git does not have, only outputs of stages are added."""
_SUBJECT: Final = "Results of a run: "


class BranchError(BlocklensError, RuntimeError):
    """The branch for results has a commit that would be lost."""


@flow(name="nightly", persist_result=False)
def nightly(branch: str = BRANCH) -> State[Any]:
    """Run the pipeline of the working directory and commit its results to `branch`."""
    root = Path.cwd()
    try:
        shared = bool(run_dvc(root, "remote", "list").strip())
        if shared:
            run_dvc(root, "pull", "--quiet", "--run-cache", "--allow-missing")
        state = pipeline(return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
        if shared:
            run_dvc(root, "push", "--quiet", "--run-cache")
        commit = commit_results(root, branch, state.message or "")
        if commit and run_git(root, "remote"):
            push_results(root, branch, commit)
    except BlocklensError as error:
        return Failed(message=str(error))
    said = f"{commit[:12]} on {branch}" if commit else "nothing to commit"
    return Completed(message=f"{state.message}; {said}")


def commit_results(root: Path, branch: str, summary: str) -> str | None:
    """Point `branch` at a commit of the results on top of HEAD, and return its hash.

    None, and no commit, where the results are those of HEAD; the branch's own commit where it is
    the same already. Neither the working tree nor the index is touched.

    Raises:
        GitError: git refuses, as it does where `branch` is checked out somewhere.
        BranchError: the branch has a commit of somebody else.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        run_git(root, "read-tree", "HEAD", environment=index)
        changed = [path for path in _TRACKED if (root / path).exists()]
        run_git(root, "add", "--update", "--", *changed, environment=index)
        if made := _new_results(root):
            run_git(root, "add", "--", *made, environment=index)
        tree = run_git(root, "write-tree", environment=index)
    if tree == run_git(root, "rev-parse", "HEAD^{tree}"):
        return None
    tip = run_git(root, "for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")
    if tip:
        if _content(root, tip) == (tree, run_git(root, "rev-parse", "HEAD")):
            return tip
        _require_replaceable(root, branch, tip)
    message = f"{_SUBJECT}{summary}"
    who = committer(root, os.environ)
    commit = run_git(root, "commit-tree", tree, "-p", "HEAD", "-m", message, environment=who)
    run_git(root, "branch", "--force", branch, commit)
    return commit


def _new_results(root: Path) -> list[str]:
    """Return the files of the run that git neither has nor ignores: small outputs, .gitignore.

    Never what else lies in data/, such as somebody's own pictures.
    """
    outputs = [out["path"] for outs in locked_outputs(root).values() for out in outs]
    ignoring = {f"{Path(output).parent}/.gitignore" for output in outputs}
    asked = ["dvc.lock", *outputs, *sorted(ignoring)]
    options = ("--others", "--exclude-standard", "-z", "--", *asked)
    return [name for name in run_git(root, "ls-files", *options).split("\0") if name]


def push_results(root: Path, branch: str, commit: str) -> None:
    """Point `branch` of origin at `commit`, unless the same is there already.

    Raises:
        GitError: git refuses, as it does where the branch was moved meanwhile.
        BranchError: the branch has a commit of somebody else.
    """
    name = f"refs/heads/{branch}"
    there = run_git(root, "ls-remote", "origin", name).partition("\t")[0]
    if there:
        run_git(root, "fetch", "--quiet", "origin", name)
        if _content(root, there) == _content(root, commit):
            return
        _require_replaceable(root, f"{branch} of origin", there)
    lease = f"--force-with-lease={name}:{there}"
    run_git(root, "push", "--quiet", lease, "origin", f"{commit}:{name}")


def _content(root: Path, commit: str) -> tuple[str, str]:
    """Return the tree of a commit, and its parents."""
    tree, _, parents = run_git(root, "log", "-1", "--format=%T %P", commit).partition(" ")
    return tree, parents


def _require_replaceable(root: Path, where: str, tip: str) -> None:
    """Raise unless all commits of a branch are of runs, or in the history of HEAD."""
    lines = run_git(root, "log", "--format=%h: %s", tip, "^HEAD").splitlines()
    if others := [line for line in lines if not line.partition(": ")[2].startswith(_SUBJECT)]:
        raise BranchError(
            f"branch {where} has a commit that is of no run ({others[0]}): merge the "
            "branch, or move that commit to another one and delete it. Then run this again: the "
            "results are in DVC's cache"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the flow from the command line; exit code 1 with its message if it fails."""
    parser = argparse.ArgumentParser(prog="python -m flows.nightly", description=__doc__)
    parser.add_argument("--branch", default=BRANCH)
    options = parser.parse_args(arguments)
    run_to_exit(lambda: nightly(options.branch, return_state=True))


if __name__ == "__main__":
    main()
