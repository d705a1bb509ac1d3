"""The worker's clone runs what is committed, and leaves the source alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from flows.graph import DVC
from flows.repository import GitError
from flows.repro import CheckoutInUseError, Outcome, exclusive_run, run_stage
from flows.worker_clone import CloneError, update_clone, update_own_clone
from tests.flows.conftest import run_dvc, wait_until
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


def test_a_clone_has_the_sources_remotes_and_their_keys(
    finished_project: Path, tmp_path: Path
) -> None:
    """A night in the clone pushed into a stray folder, or nowhere for lack of the key."""
    run_dvc(finished_project, "remote", "add", "--default", "team", "../a store")
    run_dvc(finished_project, "remote", "add", "bucket", "s3://pictures/store")
    run_dvc(finished_project, "remote", "modify", "--local", "bucket", "secret_access_key", "key")
    git(finished_project, "commit", "--quiet", "--all", "--message", "remotes")
    clone = tmp_path / "far" / "away" / "clone"
    update_clone(str(finished_project), str(clone))
    run_dvc(clone, "push", "--quiet")
    assert any((finished_project.parent / "a store").rglob("*"))
    assert "remote.bucket.secret_access_key=key" in run_dvc(clone, "config", "--list")
    run_dvc(
        finished_project, "remote", "modify", "--local", "--unset", "bucket", "secret_access_key"
    )
    update_clone(str(finished_project), str(clone))
    assert "secret_access_key" not in run_dvc(clone, "config", "--list")


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


def test_a_stage_that_still_saves_is_waited_for(finished_project: Path, tmp_path: Path) -> None:
    """Prefect takes the next run 30 s after a cancellation, when a training may still save."""
    clone = tmp_path / "clone"
    update_clone(str(finished_project), str(clone))
    (clone / "source.txt").write_text("second\n")
    (clone / "hook.sh").write_text("touch started; sleep 4; touch saved\n")
    with subprocess.Popen([*DVC, "repro", "--quiet", "zeta"], cwd=clone) as saving:
        wait_until((clone / "started").exists, "the stage never ran")
        update_clone(str(finished_project), str(clone))
        assert (clone / "saved").exists()
    assert saving.returncode == 0


def test_what_dvc_noted_before_a_restart_is_forgotten(
    finished_project: Path, tmp_path: Path
) -> None:
    """Its number belongs to another process by now, and DVC would refuse the stage for ever."""
    clone = tmp_path / "clone"
    update_clone(str(finished_project), str(clone))
    noted = {"pid": os.getpid(), "cmd": "/usr/bin/dvc repro --single-item zeta"}
    lock = clone / ".dvc" / "tmp" / "rwlock"
    paths = [str(clone / "source.txt"), str(clone / "zeta.txt")]
    lock.write_text(json.dumps({"write": {paths[1]: noted}, "read": {paths[0]: [noted]}}))
    update_clone(str(finished_project), str(clone))
    assert not lock.exists()
    assert run_stage(clone, "zeta", str, force=True) is Outcome.RAN


def test_a_worker_knows_its_own_clone(
    finished_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its environment, so that workers of one pool have each their own; or it is told so."""
    for name in ("BLOCKLENS_SOURCE", "BLOCKLENS_CLONE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CloneError, match="BLOCKLENS_SOURCE and BLOCKLENS_CLONE not set"):
        update_own_clone()
    monkeypatch.setenv("BLOCKLENS_SOURCE", str(finished_project))
    monkeypatch.setenv("BLOCKLENS_CLONE", str(tmp_path / "own"))
    assert update_own_clone("HEAD") == {"directory": str(tmp_path / "own")}
    assert (tmp_path / "own" / "omega.txt").exists()


def test_a_commit_that_the_source_lacks_is_fetched(finished_project: Path, tmp_path: Path) -> None:
    """A sweep of another machine is about its commit; the checkout here stays where it is."""
    here, clone = tmp_path / "here", tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(finished_project), str(here))
    before = git(here, "rev-parse", "HEAD")
    (finished_project / "source.txt").write_text("second\n")
    git(finished_project, "commit", "--quiet", "--all", "--message", "second")
    newer = git(finished_project, "rev-parse", "HEAD")
    update_clone(str(here), str(clone), newer)
    assert (clone / "source.txt").read_text() == "second\n"
    assert git(here, "rev-parse", "HEAD") == before
    assert (here / "source.txt").read_text() == "first\n"
