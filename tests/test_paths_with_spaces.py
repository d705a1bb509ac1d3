"""Folders and files called as people call them go through DVC, the shell and the stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_run import clone, read_params, run, stages_run, write_params
from tests.test_foreign_adapter import write_foreign

pytestmark = pytest.mark.slow


def test_names_with_spaces_and_brackets_are_names(tmp_path: Path) -> None:
    """Everything but what ends a quoted word is a part of the path, and no command."""
    folder = clone(tmp_path / "clone")
    pictures = "my pictures (v2); touch evil & it's #1 | ü"
    (folder / "data/demo").rename(folder / pictures)
    adapter = f"loras/{pictures} [v1.0].safetensors"
    write_foreign(folder / adapter)
    params = read_params(folder)
    params["prepare"]["images"] = f"{pictures}/train"
    params["prepare"]["validation_images"] = f"{pictures}/validation"
    params["split"]["adapter"] = adapter
    params["report"]["origin"] = "data/elsewhere"
    write_params(folder, params)
    done = run(folder, "dvc", "repro", "caption", "split")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(stages_run(done.stdout)) == {"fetch", "prepare", "caption", "split"}
    assert not (folder / "evil").exists()
    assert (folder / "data/caption/captions.csv").stat().st_size > 100
    again = run(folder, "dvc", "repro", "caption", "split")
    assert stages_run(again.stdout) == []
