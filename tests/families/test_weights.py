"""Base weights are what fetch recorded, or the run stops with their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.contracts.errors import WeightsError
from stages.families.weights import (
    Manifest,
    WeightFile,
    ensure_weights,
    read_manifest,
    write_manifest,
)
from stages.runtime.files import sha256_file


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder of three small files and its manifest; returns the manifest's path."""
    folder = tmp_path / "model"
    folder.mkdir()
    files = []
    for name in ("c.json", "a.safetensors", "b.txt"):
        (folder / name).write_text(f"content of {name}", encoding="utf-8")
        files.append(WeightFile(name, (folder / name).stat().st_size, sha256_file(folder / name)))
    path = tmp_path / "manifest.json"
    write_manifest(path, Manifest(str(folder), None, None, tuple(files)))
    return path


def test_untouched_weights_are_found(recorded: Path) -> None:
    """The manifest leads to the folder, in another process as in this one."""
    assert ensure_weights(recorded) == recorded.parent / "model"
    assert [file.path for file in read_manifest(recorded).files] == [
        "a.safetensors",
        "b.txt",
        "c.json",
    ]


def test_every_changed_or_missing_file_is_named(recorded: Path) -> None:
    """A different size, a different content of the same size, and a missing file."""
    folder = recorded.parent / "model"
    (folder / "a.safetensors").write_text("content of A.safetensors", encoding="utf-8")
    (folder / "b.txt").write_text("short", encoding="utf-8")
    (folder / "c.json").unlink()
    with pytest.raises(WeightsError) as caught:
        ensure_weights(recorded)
    message = str(caught.value)
    assert "a.safetensors: content changed since fetch" in message
    assert "b.txt: 5 bytes, expected 16" in message
    assert "c.json: missing" in message
    assert "dvc repro --force fetch" in message


def test_manifest_errors_say_what_to_run(tmp_path: Path) -> None:
    """No manifest, and a file that is none."""
    with pytest.raises(WeightsError, match="run `dvc repro fetch`"):
        read_manifest(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WeightsError, match="is not a manifest"):
        read_manifest(tmp_path / "manifest.json")


def test_manifest_bytes_do_not_depend_on_the_order_of_files(recorded: Path) -> None:
    """File systems list files in any order."""
    manifest = read_manifest(recorded)
    again = recorded.with_name("again.json")
    shuffled = Manifest(manifest.folder, None, None, manifest.files[::-1])
    write_manifest(again, shuffled)
    assert again.read_bytes() == recorded.read_bytes()
    shutil.rmtree(recorded.parent / "model")
