"""States are whole or passed over."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from stages.runtime.files import write_whole
from stages.training.state import (
    Contents,
    Journal,
    Row,
    clear_state,
    load_newest,
    save_state,
)


def journal(step: int, files: dict[str, str] | None = None) -> Journal:
    """Return a journal of `step` steps."""
    rows = [Row(0, None, None, 0.0, 0.1 + 0.2)]
    rows += [Row(number, number / 3, 1e-300, 0.001, None) for number in range(1, step + 1)]
    return Journal(step, rows, files or {})


def save(folder: Path, step: int, files: dict[str, str] | None = None) -> Path:
    """Save a state and return its file."""
    before = set(folder.glob("state-*"))
    contents = Contents({"weights": torch.full((3,), float(step))}, {"group 0|k": step})
    save_state(folder, journal(step, files), contents)
    (path,) = set(folder.glob("state-*")) - before
    return path


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    """Tensors, numbers (to the last bit) and gaps of the history survive."""
    save(tmp_path, 2)
    state = load_newest(tmp_path)
    assert state is not None
    assert state.journal == journal(2)
    assert torch.equal(state.contents.tensors["weights"], torch.full((3,), 2.0))
    assert state.contents.values == {"group 0|k": 2}


def test_no_state(tmp_path: Path) -> None:
    """A new run has none, not even a folder."""
    assert load_newest(tmp_path / "missing") is None


def test_newest_two_are_kept(tmp_path: Path) -> None:
    """One to go on from and one in reserve; the disk does not fill up."""
    for step in (9, 10, 100):
        save(tmp_path, step)
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == [
        "state-00000010",
        "state-00000100",
    ]
    state = load_newest(tmp_path)
    assert state is not None
    assert state.journal.step == 100


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_damaged_newest_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """A cut, changed or empty newest state is named, removed, and the one before it is used."""
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    content = newest.read_bytes()
    damaged = {"cut": content[:-5], "flip": content[:-1] + b"\x01", "empty": b""}
    newest.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        state = load_newest(tmp_path)
    assert state is not None
    assert state.journal.step == 1
    assert f"{newest} is damaged or incomplete; looking for one before step 2" in caplog.text
    assert not newest.exists()


def test_state_whose_checkpoint_is_gone_is_not_used(tmp_path: Path) -> None:
    """A run that went on without an earlier checkpoint could not publish it at the end."""
    write_whole(tmp_path / "checkpoints/a", lambda path: path.write_text("a"))
    digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    save(tmp_path, 3, {"checkpoints/a": digest})
    assert load_newest(tmp_path) is not None
    (tmp_path / "checkpoints/a").write_text("b")
    assert load_newest(tmp_path) is None


def test_unfinished_state_file_is_ignored(tmp_path: Path) -> None:
    """A kill while a state is written leaves a .partial file, which is no state."""
    save(tmp_path, 1)
    (tmp_path / "state.partial").write_bytes(b"half")
    state = load_newest(tmp_path)
    assert state is not None
    assert state.journal.step == 1


def test_clear(tmp_path: Path) -> None:
    """Nothing is left of a finished run, and clearing twice is no error."""
    save(tmp_path / ".", 1)
    clear_state(tmp_path)
    clear_state(tmp_path)
    assert not tmp_path.exists()
