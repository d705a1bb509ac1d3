"""The fault matrix: what it compares, when it strikes, what its page says, and a part of it run."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.fault_project import Undisturbed, difference, lend_later_stages, undisturbed_run
from benchmarks.faults import Case, moment, run_case
from benchmarks.faults_page import TITLES, write_page

OBJECT = "0b/ee89b07a248e27c83fc3d5951213c1"  # md5 of abc\n


def project(folder: Path) -> Path:
    """A folder like a project after a run."""
    for name, text in (
        ("dvc.lock", "lock"),
        ("data/train/adapter", "weights"),
        (f".dvc/cache/files/md5/{OBJECT}", "abc\n"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("dvc.lock", "other", "dvc.lock differs"),
        ("data/train/adapter", "wei", "other bytes: data/train/adapter"),
        ("data/.train.new/adapter", "wei", "left: data/.train.new/adapter"),
        (".blocklens/train/1/step-3", "state", "left: .blocklens/train/1/step-3"),
        (f".dvc/cache/files/md5/{OBJECT}", "ab", f"half-written: .dvc/cache/{OBJECT}"),
        (".dvc/cache/files/md5/0b/.tmp", "ab", "left: .dvc/cache/0b/.tmp"),
    ],
)
def test_what_a_fault_leaves_is_found(tmp_path: Path, name: str, text: str, said: str) -> None:
    """A check that sees nothing would call every run the same."""
    found, expected = project(tmp_path / "found"), project(tmp_path / "expected")
    assert difference(found, expected) == []
    (found / name).parent.mkdir(parents=True, exist_ok=True)
    (found / name).write_text(text)
    assert difference(found, expected) == [said]


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    """An output and an object of the cache that are not there."""
    found, expected = project(tmp_path / "found"), project(tmp_path / "expected")
    (found / "data/train/adapter").unlink()
    (found / f".dvc/cache/files/md5/{OBJECT}").unlink()
    said = ["missing: data/train/adapter", f"missing: .dvc/cache/{OBJECT}"]
    assert difference(found, expected) == said


def test_moments_are_drawn_from_the_run_and_from_the_seed(tmp_path: Path) -> None:
    """The same case strikes the same moment; workers are struck where there are any."""
    run = Undisturbed(tmp_path, {}, {"train": 30.0, "render": 10.0, "slim": 20.0})
    drawn = [moment(run, "dvc", number) for number in range(20)]
    assert drawn == [moment(run, "dvc", number) for number in range(20)]
    assert {stage for stage, _ in drawn} == {"train", "render", "slim"}
    assert all(0.0 <= after_s < run.seconds[stage] for stage, after_s in drawn)
    workers = {moment(run, "dask-worker", number)[0] for number in range(20)}
    assert workers == {"render", "slim"}


def test_only_later_stages_are_lent(tmp_path: Path) -> None:
    """What the struck stage makes has to be made again."""
    names = ("prepare", "train", "render")
    before = {name: tmp_path / "before" / name for name in names}
    done = tmp_path / "done"
    for count, folder in enumerate([*before.values(), done]):
        for name in names[:count]:
            path = folder / ".dvc" / "cache" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    struck = tmp_path / "struck"
    lend_later_stages(Undisturbed(done, before, {}), struck, "train")
    assert [path.name for path in (struck / ".dvc" / "cache").iterdir()] == ["render"]


def test_the_page_has_every_case_and_what_was_not_run(tmp_path: Path) -> None:
    """Nothing is left out of the table, least of all what went wrong."""
    good = Case("dvc", 0, "train", 3.14, "train", again=["train", "split"])
    bad = Case("dvc", 1, "encode", 1.0, None, problems=["dvc.lock differs"])
    for case in (good, bad):
        text = json.dumps(dataclasses.asdict(case))
        (tmp_path / f"dvc-{case.number}.json").write_text(text)
    page = tmp_path / "page.md"
    write_page(page, tmp_path, Undisturbed(tmp_path, {}, {"train": 7.0}))
    text = page.read_text()
    assert f"| {TITLES['dvc']} | 2 | 1 |" in text
    assert "| train | 3.1 | `dvc repro` | train, split | yes |" in text
    assert (
        "| between stages, after encode | 1.0 | `dvc repro` | - | **no**: dvc.lock differs |"
        in text
    )
    assert text.count("Not run on this machine.") == len(TITLES) - 1


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bytes(tmp_path: Path) -> None:
    """A small part of docs/faults.md: `dvc` killed, and everything at once."""
    undisturbed = undisturbed_run(tmp_path / "small")
    assert len(undisturbed.seconds) == 11
    for kind, number in (("dvc", 3), ("group", 3)):
        case = run_case(undisturbed, tmp_path / "at", kind, number)
        assert case.problems == []
        assert case.again, "nothing ran again: the run had ended before it was struck"
