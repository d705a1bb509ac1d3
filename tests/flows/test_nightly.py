"""The nightly run: what changed is run, pushed and committed to a branch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows.nightly import commit_results, nightly
from flows.repository import GitError
from flows.worker_clone import update_clone
from tests.flows.conftest import run_dvc
from tests.repositories import git


def run_nightly(root: Path, branch: str = "nightly") -> State[Any]:
    """Return the final state of the flow in a checkout."""
    here = Path.cwd()
    os.chdir(root)
    try:
        return nightly(branch, return_state=True)
    finally:
        os.chdir(here)


@pytest.mark.usefixtures("prefect_server")
def test_a_night_with_a_change_ends_in_a_commit(finished_project: Path, tmp_path: Path) -> None:
    """The source gets the branch with the new lock, the remote the files; a second night rests."""
    run_dvc(finished_project, "remote", "add", "--default", "team", str(tmp_path / "remote"))
    (finished_project / "source.txt").write_text("second\n")
    git(finished_project, "commit", "--quiet", "--all", "--message", "second")
    clone = tmp_path / "clone"
    update_clone(str(finished_project), str(clone))
    state = run_nightly(clone)
    assert state.is_completed(), state.message
    assert "Ran" in (state.message or "")
    head = git(finished_project, "rev-parse", "HEAD")
    assert git(finished_project, "rev-parse", "nightly~1") == head
    assert git(finished_project, "diff", "--name-only", "HEAD", "nightly") == "dvc.lock"
    there = tmp_path / "there"
    git(tmp_path, "clone", "--quiet", "--branch", "nightly", str(finished_project), str(there))
    run_dvc(there, "pull", "--allow-missing")
    assert (there / "omega.txt").read_text() == "second\nsecond\n"
    git(finished_project, "merge", "--quiet", "nightly")
    update_clone(str(finished_project), str(clone))
    again = run_nightly(clone)
    assert again.message == "4 Unchanged; nothing to commit"


@pytest.mark.usefixtures("prefect_server")
def test_a_failed_night_commits_nothing(finished_project: Path) -> None:
    """The branch holds whole runs alone, and the flow says what went wrong."""
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text("echo 'zeta: no way' >&2; exit 1\n")
    state = run_nightly(finished_project)
    assert state.is_failed()
    assert "no way" in (state.message or "")
    assert git(finished_project, "branch", "--list", "nightly") == ""


def test_results_are_committed_beside_the_working_tree(finished_project: Path) -> None:
    """Neither the index nor any file here moves, and an equal result makes no commit."""
    assert commit_results(finished_project, "results", "none") is None
    lock = finished_project / "dvc.lock"
    lock.write_text(lock.read_text() + "# changed\n")
    status = git(finished_project, "status", "--porcelain")
    commit = commit_results(finished_project, "results", "1 Ran")
    assert commit == git(finished_project, "rev-parse", "results")
    assert git(finished_project, "log", "-1", "--format=%s", "results") == "Results of a run: 1 Ran"
    assert git(finished_project, "show", "results:dvc.lock").endswith("# changed")
    assert git(finished_project, "status", "--porcelain") == status
    current = git(finished_project, "branch", "--show-current")
    with pytest.raises(GitError, match=current):
        commit_results(finished_project, current, "1 Ran")
