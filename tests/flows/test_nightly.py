"""The nightly run: what changed is run, pushed and committed to a branch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import State

from flows.nightly import BranchError, commit_results, nightly, push_results
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


def end_night(project: Path, clone: Path, lock: str) -> str | None:
    """Do what a night does after its run, which wrote `lock`, in a clone of the project."""
    if not clone.exists():
        git(clone.parent, "clone", "--quiet", str(project), str(clone))
    git(clone, "fetch", "--quiet", "origin", "HEAD")
    git(clone, "checkout", "--quiet", "--detach", "--force", "FETCH_HEAD")
    (clone / "dvc.lock").write_text(lock)
    commit = commit_results(clone, "nightly", "1 Ran")
    if commit:
        push_results(clone, "nightly", commit)
    return commit


def test_nights_before_a_merge_make_one_commit(finished_project: Path, tmp_path: Path) -> None:
    """Each night made and pushed an equal one, over whatever a person had put on the branch."""
    clone, there = tmp_path / "clone", tmp_path / "there"
    first = end_night(finished_project, clone, "schema: first")
    assert first == git(finished_project, "rev-parse", "nightly")
    assert end_night(finished_project, clone, "schema: first") == first
    shutil.rmtree(clone)  # what it had last pushed is forgotten with it
    end_night(finished_project, clone, "schema: first")
    assert git(finished_project, "rev-parse", "nightly") == first
    end_night(finished_project, clone, "schema: second")
    assert git(finished_project, "show", "nightly:dvc.lock") == "schema: second"

    git(tmp_path, "clone", "--quiet", "--branch", "nightly", str(finished_project), str(there))
    git(there, "commit", "--quiet", "--allow-empty", "--message", "a person's own")
    git(there, "push", "--quiet", "origin", "nightly")
    for lock in ("schema: second", "schema: third"):
        with pytest.raises(BranchError, match=r"nightly of origin has .* of no run .*person's own"):
            end_night(finished_project, clone, lock)
        own = git(there, "rev-parse", "HEAD")
        assert git(finished_project, "rev-parse", "nightly") == own

    git(finished_project, "merge", "--quiet", "nightly")
    end_night(finished_project, clone, "schema: third")
    head = git(finished_project, "rev-parse", "HEAD")
    assert git(finished_project, "rev-parse", "nightly~1") == head
    git(finished_project, "branch", "--delete", "--force", "nightly")
    commit = end_night(finished_project, clone, "schema: third")
    assert git(finished_project, "rev-parse", "nightly") == commit


@pytest.mark.usefixtures("prefect_server")
def test_a_failed_night_commits_nothing(finished_project: Path) -> None:
    """The branch holds whole runs alone, and the flow says what went wrong."""
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text("echo 'zeta: no way' >&2; exit 1\n")
    state = run_nightly(finished_project)
    assert state.is_failed()
    assert "no way" in (state.message or "")
    assert git(finished_project, "branch", "--list", "nightly") == ""


def test_pictures_that_git_does_not_have_stay_private(finished_project: Path) -> None:
    """In somebody's own checkout their photos lie in data/, and the branch is pushed."""
    for name in ("mine/train/me.png", "tables/made.csv"):
        path = finished_project / "data" / name
        path.parent.mkdir(parents=True)
        path.write_text(name)
    lock = yaml.safe_load((finished_project / "dvc.lock").read_text())
    lock["stages"]["table"] = {"cmd": "true", "outs": [{"path": "data/tables/made.csv"}]}
    (finished_project / "dvc.lock").write_text(yaml.safe_dump(lock))
    commit_results(finished_project, "results", "1 Ran")
    changed = git(finished_project, "diff", "--name-only", "HEAD", "results").splitlines()
    assert changed == ["data/tables/made.csv", "dvc.lock"]


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
    assert commit_results(finished_project, "results", "another night") == commit
    git(finished_project, "branch", "own", "HEAD")
    git(finished_project, "commit", "--quiet", "--allow-empty", "--message", "later")
    assert commit_results(finished_project, "own", "1 Ran") not in (None, commit)
    git(finished_project, "branch", "--force", "own", "HEAD")
    git(finished_project, "reset", "--quiet", "--soft", "HEAD~1")
    with pytest.raises(BranchError, match=r"branch own has a commit that is of no run .*: later"):
        commit_results(finished_project, "own", "1 Ran")
    current = git(finished_project, "branch", "--show-current")
    with pytest.raises(GitError, match=current):
        commit_results(finished_project, current, "1 Ran")
