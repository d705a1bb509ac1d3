"""The stage puts the page and the map in their place, or says what is missing."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.contracts.errors import TableError
from stages.contracts.params import Params, Section
from stages.report import report
from tests.reporting.example import Example, example_folders, example_params, write_example
from tests.reporting.reading import read_markup

ROOT = Path(__file__).parents[2]
SMALL = Example(double_blocks=2, single_blocks=3, absent=("single.1",), side_px=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data/ folder with everything before the report."""
    folder = tmp_path_factory.mktemp("report") / "data"
    write_example(folder, SMALL)
    return folder


def sections_of(params: Params) -> list[Section]:
    """Return what the stage is given."""
    return [getattr(params, name) for name in Params.model_fields]


def run(data: Path, out: Path, params: Params | None = None) -> Path:
    """Run the stage and return its output folder."""
    params = params or example_params()
    report(*sections_of(params), out=out, **example_folders(data))
    return out


def test_page_and_map_are_written(data: Path, tmp_path: Path) -> None:
    """Page and map are well-formed and small enough to mail; workflows lie beside them."""
    out = run(data, tmp_path / "report")
    assert sorted(path.name for path in out.iterdir()) == [
        "block-map.svg",
        "comfyui",
        "index.html",
    ]
    html = (out / "index.html").read_text(encoding="utf-8")
    assert len(read_markup(html)) > 500
    assert len(html) < 25_000_000


def test_the_same_inputs_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    """Wherever the repository lies: no absolute path is in the page."""
    shutil.copytree(data, tmp_path / "elsewhere" / "data")
    here = run(data, tmp_path / "a")
    there = run(tmp_path / "elsewhere" / "data", tmp_path / "b")
    names = sorted(path.relative_to(here) for path in here.rglob("*.*"))
    assert len(names) == 2 + 13
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_colour_map_of_params_is_the_colour_map_of_the_page(data: Path, tmp_path: Path) -> None:
    """evaluate.colour_map reaches the page too."""
    params = example_params()
    look = params.evaluate.model_copy(update={"colour_map": "viridis"})
    other = run(data, tmp_path / "a", params.model_copy(update={"evaluate": look}))
    assert "rgb(68 1 84)" in (other / "index.html").read_text(), "viridis starts in purple"


def test_a_lora_from_elsewhere_has_a_page_without_its_making(data: Path, tmp_path: Path) -> None:
    """With empty folders of prepare, caption and train: no such sections, everything else."""
    elsewhere = tmp_path / "data"
    shutil.copytree(data, elsewhere)
    for stage in ("prepare", "caption", "train"):
        shutil.rmtree(elsewhere / stage)
        (elsewhere / stage).mkdir()
        (elsewhere / stage / ".gitkeep").touch()
    shutil.copy(data / "train" / "adapter.safetensors", elsewhere / "foreign.safetensors")
    folders = example_folders(elsewhere) | {"adapter": elsewhere / "foreign.safetensors"}
    params = example_params()
    report(
        *[getattr(params, name) for name in Params.model_fields], out=tmp_path / "out", **folders
    )
    here = (run(data, tmp_path / "here") / "index.html").read_text(encoding="utf-8")
    there = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    making = {'id="training"', 'href="#training"', 'id="dataset"', 'href="#dataset"'}
    assert all(mark in here for mark in making)
    assert not [mark for mark in making if mark in there]
    for mark in ('id="map"', 'id="blocks"', 'id="ranking"', 'id="slim"', 'id="provenance"'):
        assert mark in there
    # without a target DVC would train, which needs pictures (flows/targets.py)
    assert "\ndvc repro\nsha256sum" in here
    assert "\ndvc repro report\nsha256sum" in there
    assert "learning_rate" in here
    assert "learning_rate" not in there


def test_the_hashes_can_be_checked_wherever_the_lora_is_from(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page gives to copy succeeds in the project, and names a LoRA from outside too."""
    project, outside = tmp_path / "project", tmp_path / "loras" / "mine.safetensors"
    shutil.copytree(data, project / "data")
    outside.parent.mkdir()
    (project / "data/train/adapter.safetensors").rename(outside)
    monkeypatch.chdir(project)
    folders = example_folders(Path("data")) | {"adapter": outside}
    report(*sections_of(example_params()), out=Path("data/report"), **folders)
    page = Path("data/report/index.html").read_text(encoding="utf-8")
    block = re.search(r"sha256sum --check &lt;&lt;'END'\n(.*?)END<", page, re.DOTALL)
    assert block
    sums = html.unescape(block[1])
    lines = [line.partition("  ") for line in sums.splitlines()]
    (kept,) = (line for line in lines if line[2].endswith("/loras/mine.safetensors"))
    assert kept[0].startswith("# not below this folder: ")
    done = subprocess.run(
        ["sha256sum", "--check", "--strict"],
        input=sums,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK\n") == len(lines) - 1 == 4


def test_a_run_of_which_a_part_is_missing_is_not_from_elsewhere(data: Path, tmp_path: Path) -> None:
    """An empty folder of train beside pictures and captions is an error, not another page."""
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    shutil.copy(data / "train" / "adapter.safetensors", broken / "a.safetensors")
    shutil.rmtree(broken / "train")
    (broken / "train").mkdir()
    folders = example_folders(broken) | {"adapter": broken / "a.safetensors"}
    params = example_params()
    with pytest.raises(TableError, match=r"history\.csv"):
        report(
            *[getattr(params, name) for name in Params.model_fields],
            out=tmp_path / "out",
            **folders,
        )


def test_missing_inputs_leave_the_old_report(data: Path, tmp_path: Path) -> None:
    """A failed run does not take the last good page away."""
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    out = run(broken, tmp_path / "report")
    before = (out / "index.html").read_bytes()
    (broken / "slim" / "curve.csv").unlink()
    (broken / "evaluate" / "metrics.json").unlink()
    with pytest.raises(TableError) as caught:
        run(broken, out)
    assert "curve.csv" in str(caught.value)
    assert "evaluate/metrics.json" in str(caught.value)
    assert (out / "index.html").read_bytes() == before


def test_the_report_needs_no_torch() -> None:
    """It starts in a second, and a machine without torch can write it."""
    code = "import sys, stages.report; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
