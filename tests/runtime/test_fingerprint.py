"""Another run's state is never picked up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stages.contracts.params.packages import OPTIONAL_PACKAGES
from stages.runtime import fingerprint
from stages.runtime.fingerprint import (
    package_versions,
    run_fingerprint,
    source_files,
    source_hashes,
)

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "stages" / "train.py"
PARAMS = {"train": {"seed": 1, "sigmas": [0.2]}}
INPUTS = {"index.csv": "a" * 64}


def test_same_run_same_fingerprint() -> None:
    """A killed run finds its own state again."""
    assert run_fingerprint(PARAMS, INPUTS, TRAIN) == run_fingerprint(PARAMS, INPUTS, TRAIN)


def test_params_data_and_stage_each_count() -> None:
    """Another seed, another picture or another stage is another run."""
    prints = {
        run_fingerprint(PARAMS, INPUTS, TRAIN),
        run_fingerprint({"train": {"seed": 2, "sigmas": [0.2]}}, INPUTS, TRAIN),
        run_fingerprint(PARAMS, {"index.csv": "b" * 64}, TRAIN),
        run_fingerprint(PARAMS, INPUTS, ROOT / "stages" / "encode.py"),
    }
    assert len(prints) == 4


def test_code_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change in any module of ours that the stage imports is another run."""
    (tmp_path / "stages/deep").mkdir(parents=True)
    stage, module = tmp_path / "stages/one.py", tmp_path / "stages/deep/two.py"
    stage.write_text("from stages.deep import two\nimport torch\n")
    module.write_text("value = 1\n")
    monkeypatch.setattr(fingerprint, "_ROOT", tmp_path)
    before = run_fingerprint(PARAMS, INPUTS, stage)
    assert source_files(stage) == (module, stage)
    module.write_text("value = 2\n")
    assert run_fingerprint(PARAMS, INPUTS, stage) != before


def test_package_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch may give other bits."""
    before = run_fingerprint(PARAMS, INPUTS, TRAIN)
    monkeypatch.setattr(fingerprint, "version", lambda _: "0.0")
    assert set(package_versions(PARAMS).values()) == {"0.0"}
    assert run_fingerprint(PARAMS, INPUTS, TRAIN) != before


@pytest.mark.parametrize(
    ("section", "key", "value", "package"),
    [(*asked, package) for asked, package in OPTIONAL_PACKAGES.items()],
)
def test_optional_packages_count_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch, section: str, key: str, value: str, package: str
) -> None:
    """To install one, or another version of it, changes no run that does without it."""
    params = {"model": {"quantisation": "none"}, "train": {"optimiser": "adamw"}}
    using = params | {section: {key: value}}
    asked: list[str] = []

    def version(name: str) -> str:
        asked.append(name)
        return f"{len(asked)}.0" if name in OPTIONAL_PACKAGES.values() else "0.0"

    monkeypatch.setattr(fingerprint, "version", version)
    plain = run_fingerprint(params, INPUTS, TRAIN)
    assert set(asked).isdisjoint(OPTIONAL_PACKAGES.values())
    assert package_versions(using).keys() - package_versions(params).keys() == {package}
    assert run_fingerprint(using, INPUTS, TRAIN) != run_fingerprint(using, INPUTS, TRAIN)
    assert run_fingerprint(params, INPUTS, TRAIN) == plain


def test_source_files_are_the_imports_of_train() -> None:
    """What training computes with is in, what merely checks and logs is not."""
    files = {path.relative_to(ROOT).as_posix() for path in source_files(TRAIN)}
    assert "stages/training/step.py" in files
    assert "stages/adapters/attach.py" in files
    assert "stages/families/flow.py" in files
    assert not [name for name in files if name.startswith(("stages/contracts", "stages/runtime"))]


def test_source_hashes_are_gits() -> None:
    """`git log --find-object` finds the commit of a run by them; unrelated files are not there."""
    hashes = source_hashes(TRAIN)
    assert {ROOT / name for name in hashes} == set(source_files(TRAIN))
    assert not any("reporting" in name for name in hashes)
    command = ["git", "hash-object", "--no-filters", "stages/train.py"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert hashes["stages/train.py"] == printed.stdout.strip()
