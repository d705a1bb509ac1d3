"""An experiment travels as text, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.experiments.dvc_experiments import read_experiments, run_experiment
from flows.experiments.parcels import pack, unpack
from flows.repository import GitError
from tests.flows.sweep_project import make_project
from tests.repositories import git


def test_an_experiment_arrives_as_it_was(tmp_path: Path) -> None:
    """Params, metrics and dvc.lock are there; the branch, the files and other refs are not touched.

    So it is with one that changes nothing, and what is no parcel is refused.
    """
    origin = make_project(tmp_path / "origin")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(origin), str(clone))
    run_experiment(clone, "four", "train", {"train.rank": 4}, lambda _line: None)
    run_experiment(clone, "same", "train", {}, lambda _line: None)
    before = git(origin, "for-each-ref")
    for name in ("four", "same"):
        unpack(origin, name, pack(clone, name))
    assert read_experiments(origin) == read_experiments(clone)
    assert read_experiments(origin)["four"][1]["data/train/metrics.json"] == {
        "validation_loss": 0.4
    }
    arrived = [line for line in git(origin, "for-each-ref").splitlines() if line not in before]
    assert [line.rpartition("/")[2] for line in arrived] == ["four", "same"]
    assert git(origin, "status", "--porcelain") == ""
    with pytest.raises(GitError, match="no experiment"):
        unpack(origin, "other", "not base64!")
    with pytest.raises(GitError):
        unpack(origin, "other", pack(clone, "four"))
    assert "other" not in read_experiments(origin)
