"""Planted pairs in nano-flux: what the block lens says of them, and that their page says it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.planted import plant_all
from benchmarks.planted_page import Found, write_page
from stages.contracts.params import load_params
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

STEPS, NODES, SIGMAS = 4, 2, [0.5, 0.9]


@pytest.fixture(scope="module")
def plants(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Found]:
    """The four plants at few steps, by name."""
    params = load_params(ROOT / "params.yaml")
    lens = params.attribute.model_copy(update={"nodes": NODES, "sigmas": SIGMAS})
    sampling = params.sampling.model_copy(update={"steps": STEPS})
    few = params.model_copy(update={"attribute": lens, "sampling": sampling})
    found = plant_all(few, (0,), tmp_path_factory.mktemp("planted"))
    assert len(found) == 4
    return {one.name: one for one in found}


def test_halves_are_independent(plants: Mapping[str, Found]) -> None:
    """Each has about half of the share and of the pictures, and hardly anything in common."""
    one = plants["halves"]
    for row in one.rows:
        assert 0.3 < row.share < 0.7
        assert 0.1 < row.isolate < 0.9
    assert abs(one.products[0, 1]) < min(one.products[0, 0], one.products[1, 1]) / 2


def test_two_that_only_work_together(plants: Mapping[str, Found]) -> None:
    """Neither does much alone, yet each has half of the share, and as much in common as alone."""
    one = plants["together"]
    for row in one.rows:
        assert 0.3 < row.share < 0.7
        assert row.isolate < 0.4
    assert one.products[0, 1] == pytest.approx(0.25, abs=0.08)


def test_twins(plants: Mapping[str, Found]) -> None:
    """Either does most of it alone, and still each has but half of the share."""
    one = plants["twins"]
    for row in one.rows:
        assert 0.3 < row.share < 0.7
        assert row.without > 0.6
    assert one.products[0, 1] > 0.1


def test_one_that_undoes_another(plants: Mapping[str, Found]) -> None:
    """Alone and without, the two are far from the LoRA; together they hardly matter."""
    one = plants["undone"]
    pushes, undoes, works = one.rows
    assert undoes.share < -0.2 < 0.2 < pushes.share
    assert pushes.isolate < 0.0
    assert undoes.without < -1.0
    assert works.isolate > 0.4
    assert one.products[0, 1] < -0.4


def test_the_page_has_a_table_and_a_sheet_of_each(
    plants: Mapping[str, Found], tmp_path: Path
) -> None:
    """Every plant's shares are in the text, and its sheet is small enough for a page."""
    write_page(tmp_path / "page.md", list(plants.values()), "Settings.")
    page = (tmp_path / "page.md").read_text()
    for one in plants.values():
        sheet = tmp_path / f"page-{one.name}.jpg"
        assert f"]({sheet.name})" in page
        assert sheet.stat().st_size < 60_000
        assert all(f"| {row.block} | {row.share:.2f} |" in page for row in one.rows)
