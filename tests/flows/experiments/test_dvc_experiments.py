"""Experiments in a toy project: what is refused, how a failure reads, what is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.experiments.dvc_experiments import (
    UncommittedError,
    finished_experiments,
    read_experiments,
    require_committed,
    run_experiment,
)
from flows.graph import GraphError, run_dvc
from flows.repository import GitError
from flows.repro import StageFailedError
from stages.contracts.params import Params, load_params
from tests.repositories import git

PARAMS = Path(__file__).parents[3] / "params.yaml"
FAIL = "echo 'alpha: cannot go on' >&2; exit 1\n"


@pytest.fixture
def no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which git knows no user."""
    for name in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", "/dev/null")
    for person in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{person}_NAME", raising=False)
        monkeypatch.delenv(f"GIT_{person}_EMAIL", raising=False)


def params_with(folder: str, images: str) -> Params:
    """Return params whose inputs are these, all relative."""
    params = load_params(PARAMS)
    prepare = params.prepare.model_copy(update={"images": images, "validation_images": images})
    return params.model_copy(
        update={
            "fetch": params.fetch.model_copy(update={"folder": folder}),
            "prepare": prepare,
            "caption": params.caption.model_copy(update={"folder": None}),
        }
    )


@pytest.mark.usefixtures("no_identity")
def test_an_experiment_changes_params_and_nothing_here(finished_project: Path) -> None:
    """Uncommitted work survives, git needs no user, and the metrics are the experiment's own."""
    (finished_project / "params.yaml").write_text("section: {lines: 1}\n")
    dvc = (finished_project / "dvc.yaml").read_text()
    dvc = dvc.replace("""'{"lines":1}' >""", """'{"lines":'${section.lines}'}' >""").replace(
        "deps: [source.txt]\n    outs: [alpha", "deps: [source.txt, copy.sh]\n    outs: [alpha"
    )
    (finished_project / "dvc.yaml").write_text(dvc)
    git(finished_project, "add", "--all")
    git(finished_project, "commit", "--quiet", "--message", "params")
    (finished_project / "source.txt").write_text("uncommitted\n")
    (finished_project / "note.txt").write_text("untracked\n")
    status = git(finished_project, "status", "--porcelain")
    lines: list[str] = []
    run_experiment(finished_project, "three", "alpha", {"section.lines": 3}, lines.append)
    assert git(finished_project, "status", "--porcelain") == status
    assert (finished_project / "source.txt").read_text() == "uncommitted\n"
    found = finished_experiments(finished_project, "metrics.json")
    assert set(found) == {"three"}
    assert found["three"].params == {"section": {"lines": 3}}
    assert found["three"].metrics == {"lines": 3}
    assert json.loads((finished_project / "metrics.json").read_text()) == {"lines": 1}
    assert "Running stage 'alpha':" in lines
    git(finished_project, "commit", "--quiet", "--all", "--message", "another commit")
    assert finished_experiments(finished_project, "metrics.json") == {}


def test_what_dvc_had_half_written_stops_nobody(finished_project: Path) -> None:
    """`dvc exp show` gives up on the note of a run that was stopped while it was written."""
    note = finished_project / ".dvc/tmp/exps/standalone/run/abc/abc.run"
    note.parent.mkdir(parents=True)
    note.write_text('{"git_url"', encoding="utf-8")
    with pytest.raises(GraphError, match="corrupted"):
        run_dvc(finished_project, "exp", "show", "--json")
    assert read_experiments(finished_project) == {}
    assert not note.parent.exists()


def test_a_failed_stage_is_heard_in_its_own_words(finished_project: Path) -> None:
    """DVC names the failure twice and the reason never; no experiment comes of it."""
    (finished_project / "copy.sh").write_text(FAIL)
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "params.yaml").write_text("section: {lines: 1}\n")
    git(finished_project, "add", "--all")
    git(finished_project, "commit", "--quiet", "--message", "broken")
    with pytest.raises(StageFailedError) as caught:
        run_experiment(finished_project, "broken", "alpha", {}, lambda _line: None)
    assert str(caught.value) == "broken: alpha: cannot go on"
    assert finished_experiments(finished_project, "metrics.json") == {}
    assert git(finished_project, "status", "--porcelain") == ""


def test_a_stage_that_hangs_does_not_hold_its_worker_for_ever(finished_project: Path) -> None:
    """The time-outs of dvc.yaml hold for an experiment, too; it has all of them together."""
    pipeline = finished_project / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("timeout_s: 60", "timeout_s: 0.5"))
    (finished_project / "copy.sh").write_text("sleep 600\n")
    git(finished_project, "commit", "--quiet", "--all", "--message", "hangs")
    with pytest.raises(StageFailedError, match=r"^slow: stopped after 0\.5 s, the timeout_s of "):
        run_experiment(finished_project, "slow", "alpha", {}, lambda _line: None)


def test_inputs_must_be_those_of_the_commit(finished_project: Path) -> None:
    """The copy would train on other pictures, code or params than those that lie here."""
    for folder in ("weights", "pictures", "stages"):
        (finished_project / folder).mkdir()
        (finished_project / folder / "file").write_text("first\n")
    params = params_with("weights", "pictures")
    git(finished_project, "add", "pictures", "stages")
    git(finished_project, "commit", "--quiet", "--message", "inputs")
    (finished_project / "pictures" / "file").write_text("second\n")
    (finished_project / "stages" / "new.py").write_text("")
    with pytest.raises(UncommittedError) as caught:
        require_committed(finished_project, params)
    assert str(caught.value).splitlines() == [
        "an experiment belongs to a commit (4 problems):",
        "  - pictures/file: not as in the commit. Commit it, or take the change back",
        "  - stages/new.py: not as in the commit. Commit it, or take the change back",
        "  - weights: not in git, and an experiment runs in a copy of the commit. git add weights "
        "(or dvc add) and commit, or give its absolute path",
        "  - weights/file: not as in the commit. Commit it, or take the change back",
    ]
    git(finished_project, "add", "--all")
    git(finished_project, "commit", "--quiet", "--message", "all")
    (finished_project / "zeta.txt").write_text("an output\n")
    (finished_project / "note.txt").write_text("no input\n")
    require_committed(finished_project, params)
    require_committed(finished_project, params_with(str(finished_project / "not"), "pictures"))


def test_no_commit_is_no_place_for_experiments(tmp_path: Path) -> None:
    """Someone who unpacked an archive hears it from git."""
    with pytest.raises(GitError, match=r"git ls-files .*not a git repository"):
        require_committed(tmp_path, params_with("weights", "pictures"))
