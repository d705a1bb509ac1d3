"""A stage's folder is the old one or the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.runtime.outputs import replace_folder


def content(folder: Path) -> dict[str, str]:
    """Return file names and texts of a folder."""
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_success_replaces_everything(tmp_path: Path) -> None:
    """No file of the run before survives, except what git keeps there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old", encoding="utf-8")
    (out / ".gitignore").write_text("/old", encoding="utf-8")
    with replace_folder(out) as work:
        (work / "new").write_text("new", encoding="utf-8")
    assert content(out) == {"new": "new", ".gitignore": "/old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def write_half(out: Path, error: type[BaseException] | BaseException) -> None:
    """Write one file of the new folder, then fail."""
    with replace_folder(out) as work:
        (work / "new").write_text("half", encoding="utf-8")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    """Neither an error nor Ctrl-C costs what was there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old", encoding="utf-8")
    with pytest.raises(error):
        write_half(out, error)
    assert content(out) == {"old": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_kill_between_the_renames_is_undone(tmp_path: Path) -> None:
    """The one moment without a folder heals at the next run."""
    old = tmp_path / ".out.old"
    old.mkdir()
    (old / "kept").write_text("kept", encoding="utf-8")
    with pytest.raises(ValueError, match="stop"):
        write_half(tmp_path / "out", ValueError("stop"))
    assert content(tmp_path / "out") == {"kept": "kept"}
