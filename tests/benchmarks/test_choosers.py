"""The page of choosers, and how its files name sets of blocks."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.choosers import WAYS, set_key, strengths_of
from benchmarks.choosers_page import write_page


@pytest.mark.parametrize("strengths", [[1.0, 0.0, 1.0], [1.25, 0.0, 1.0], [0.0, 0.0, 0.0]])
def test_a_key_says_which_strengths(strengths: list[float]) -> None:
    """What a run keeps is found again by the next one."""
    key = set_key(np.array(strengths))
    np.testing.assert_array_equal(strengths_of(key, 3), strengths)


def test_choosers_have_names_of_their_own() -> None:
    """Two ways with one name would share what is kept."""
    assert len({way.name for way in WAYS}) == len(WAYS) > 10


def test_the_page_compares_the_default_with_what_people_do(tmp_path: Path) -> None:
    """The first table has both, and how many bytes fewer the default takes."""
    row = {"blocks": 3, "develop": 0.95, "develop_low": 0.91, "held_out_low": 0.9}
    rows = [
        {"chooser": "interaction", **row, "bytes": 0.45, "held_out": 0.93},
        {"chooser": "isolate-mse", **row, "bytes": 0.6, "held_out": 0.92},
    ]
    curve = [{"chooser": "interaction", "bytes": 0.45, "develop": 0.95, "held_out": 0.93}]
    sigmas = [{"sigmas": "0.5", "pictures": 6, "rank_correlation": 0.8, "guess": 0.1, "seen": 0.2}]
    (tmp_path / "demo").mkdir()
    tables = {"rows": rows, "curve": curve, "sigmas": sigmas}
    (tmp_path / "demo" / "tables.json").write_text(json.dumps(tables))
    write_page(tmp_path / "page.md", [tmp_path / "demo"])
    page = (tmp_path / "page.md").read_text()
    assert "| demo | 0.450 | 0.600 | 0.250 | 0.930 | 0.920 |" in page
    assert "- interaction: 45%: 0.930 (0.950)" in page
    assert "| 0.5 | 6 | 0.800 | 0.100 | 0.200 |" in page
