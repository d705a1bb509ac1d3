"""A Dask cluster makes what one process makes, in a whole project."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import small_run as project

STAGES = ("render", "attribute", "slim")


def outputs(folder: Path) -> dict[str, bytes]:
    """All files that the three stages wrote; the order in `.gitignore` is DVC's."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for stage in STAGES
        for path in sorted((folder / "data" / stage).rglob("*"))
        if path.is_file() and path.name != ".gitignore"
    }


@pytest.mark.slow
def test_dvc_lock_is_the_same_from_a_cluster(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Render, attribute and slim by two workers: same bytes, same lock, so same reuse by others."""
    folder = shutil.copytree(small_run, tmp_path / "cluster", symlinks=True)
    lock, files = (folder / "dvc.lock").read_bytes(), outputs(folder)
    assert len(files) > 100
    monkeypatch.setenv("BLOCKLENS_DASK", "local:2")
    for stage in STAGES:
        shutil.rmtree(folder / "data" / stage)
        done = project.run(folder, "dvc", "repro", "--single-item", "--force", stage)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "BLOCKLENS_DASK=local:2: 2 workers" in done.stdout + done.stderr
    assert outputs(folder) == files
    assert (folder / "dvc.lock").read_bytes() == lock
