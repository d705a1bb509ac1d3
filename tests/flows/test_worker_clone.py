"""The worker's clone runs what is committed, and leaves the source alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.repository import GitError
from flows.repro import CheckoutInUseError, exclusive_run
from flows.worker_clone import CloneError, update_clone
from tests.flows.conftest import run_dvc
from tests.repositories import git


def test_a_clone_has_the_commit_and_the_cache(finished_project: Path, tmp_path: Path) -> None:
    """Nothing that the source has made is made again: its cache is the clone's."""
    (finished_project / "source.txt").write_text("uncommitted\n")
    clone = tmp_path / "clone"
    assert update_clone(str(finished_project), str(clone)) == {"directory": str(clone)}
    assert (clone / "source.txt").read_text() == "first\n"
    assert (clone / "omega.txt").read_text() == "first\nfirst\n"
    assert "Running stage" not in run_dvc(clone, "repro")
    assert (finished_project / "source.txt").read_text() == "uncommitted\n"


def test_a_clone_follows_its_source_and_drops_what_a_run_changed(
    finished_project: Path, tmp_path: Path
) -> None:
    """The next run starts at the new commit, without the last one's overrides; state stays."""
    clone = tmp_path / "clone"
    update_clone(str(finished_project), str(clone))
    (clone / "source.txt").write_text("of an earlier run\n")
    state = clone / ".blocklens" / "train" / "state"
    state.parent.mkdir(parents=True)
    state.write_text("resumable")
    (finished_project / "source.txt").write_text("second\n")
    git(finished_project, "commit", "--quiet", "--all", "--message", "second")
    update_clone(str(finished_project), str(clone))
    assert (clone / "source.txt").read_text() == "second\n"
    assert git(clone, "rev-parse", "HEAD") == git(finished_project, "rev-parse", "HEAD")
    assert state.read_text() == "resumable"
    update_clone(str(finished_project), str(clone), "HEAD~1")
    assert (clone / "source.txt").read_text() == "first\n"


def test_a_folder_that_is_something_else_is_refused(finished_project: Path, tmp_path: Path) -> None:
    """A typing error must not reset another repository or fill a folder of pictures."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_text("picture")
    with pytest.raises(CloneError, match="is not empty"):
        update_clone(str(finished_project), str(pictures))
    clone = tmp_path / "clone"
    update_clone(str(finished_project), str(clone))
    with pytest.raises(CloneError, match="is a clone of"):
        update_clone(str(tmp_path), str(clone))
    with pytest.raises(GitError, match="rev-parse nowhere"):
        update_clone(str(finished_project), str(clone), "nowhere")


def test_a_clone_in_use_is_not_changed(finished_project: Path, tmp_path: Path) -> None:
    """A second run must not take the files away from under the first."""
    clone = tmp_path / "clone"
    update_clone(str(finished_project), str(clone))
    with exclusive_run(clone), pytest.raises(CheckoutInUseError):
        update_clone(str(finished_project), str(clone))
