"""`dvc plots show` draws what dvc.yaml promises, from the tables that the stages write."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.reporting.example import Example, write_example

ROOT = Path(__file__).parents[1]
PLOTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
TINY = Example(double_blocks=2, single_blocks=3, absent=("single.1",), side_px=32)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page that DVC writes from an example's tables."""
    folder = tmp_path_factory.mktemp("plots")
    write_example(folder / "data", TINY)
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": PLOTS}), encoding="utf-8")
    run = [sys.executable, "-m", "dvc"]
    subprocess.run([*run, "init", "--no-scm", "-q", "-f"], cwd=folder, check=True)
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots", dirs_exist_ok=True)
    done = subprocess.run(
        [*run, "plots", "show", "-o", "page"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "WARNING" not in done.stderr, done.stderr
    return (folder / "page" / "index.html").read_text(encoding="utf-8")


def specification(page: str, name: str) -> dict[str, Any]:
    """Return a plot's Vega-Lite specification."""
    end = page.index(f"vegaEmbed('#{name}', spec)")
    start = page.rindex("var spec = ", 0, end) + len("var spec = ")
    specified, _ = json.JSONDecoder().raw_decode(page, start)
    return dict(specified)


@pytest.mark.parametrize("name", [name for plot in PLOTS for name in plot])
def test_every_plot_has_points(page: str, name: str) -> None:
    """A plot whose columns are gone would be an empty frame."""
    plotted = specification(page, name.replace(" ", "_"))
    assert len(plotted["data"]["values"]) >= 3


def test_the_map_has_a_place_for_each_block_present(page: str) -> None:
    """Blocks lie by stack and index, coloured by share; one that is not present has no row."""
    drawn = specification(page, "block_map")
    values = {row["block"]: float(row["share"]) for row in drawn["data"]["values"]}
    assert set(values) == {"double.0", "double.1", "single.0", "single.2"}
    assert drawn["encoding"]["color"]["field"] == "share"
    assert drawn["mark"]["type"] == "rect"
