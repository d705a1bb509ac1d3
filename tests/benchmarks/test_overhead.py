"""What is added to the stages is the time outside of their commands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.overhead import SHELL, Timing, loop, tables, timed
from flows.graph import DVC, run_dvc

STAGES = """\
stages:
  one: {cmd: "echo 'it''s' > one", outs: [one]}
  two: {cmd: cat one > two, deps: [one], outs: [two]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two stages that never ran."""
    folder = tmp_path / "project"
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    run_dvc(folder, "init", "--quiet")
    (folder / "dvc.yaml").write_text(STAGES)
    return folder


def test_the_shell_times_every_command(project: Path, tmp_path: Path) -> None:
    """A loop and DVC run the same commands; with nothing to do no time is a stage's."""
    shell = tmp_path / "timing-sh"
    shell.write_text(SHELL)
    shell.chmod(0o755)
    bare = timed(project, loop(project), shell, {})
    assert (project / "times").read_text().count("begin") == 2
    assert (project / "two").read_text() == "its\n"
    repro = timed(project, [*DVC, "repro"], shell, {})
    assert (project / "times").read_text().count("begin") == 2
    for timing in (bare, repro):
        assert 0 < timing.first_s < timing.first_s + timing.inside_s <= timing.total_s
    idle = timed(project, [*DVC, "repro"], shell, {})
    assert not (project / "times").exists()
    assert idle.inside_s == 0


def test_tables_have_seconds_and_shares() -> None:
    """The share is of the time inside the stages."""
    text = tables({"`dvc repro`": Timing(103.0, 1.25, 100.0)}, {"the flow": Timing(4.0, 4.0, 0.0)})
    assert "| `dvc repro` | 103.0 | 100.0 | 3.0 | 3.0% | 1.2 |" in text
    assert text.endswith("| the flow | 4.0 |\n")
