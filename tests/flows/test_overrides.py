"""Overrides of one run end up in params.yaml, or nothing does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.overrides import apply_overrides
from stages.contracts.errors import ParamsError
from stages.contracts.params import load_params

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the demo's params.yaml."""
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    return tmp_path


def test_only_the_named_lines_change(root: Path) -> None:
    """A diff shows the override and nothing else: comments, order and quotes stay."""
    apply_overrides(root, {"train.rank": 4, "prompts.seeds": [3], "report.title": "robot: no. 2"})
    before = PARAMS.read_text(encoding="utf-8").splitlines()
    after = (root / "params.yaml").read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=False) if old != new]
    assert len(changed) <= 4, changed
    params = load_params(root / "params.yaml")
    assert params.train.rank == 4
    assert params.prompts.seeds == [3]
    assert params.report.title == "robot: no. 2"


def test_nothing_is_written_where_anything_is_wrong(root: Path) -> None:
    """All problems in one message, and the file as it was."""
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(ParamsError) as unknown:
        apply_overrides(root, {"train.rnk": 4, "rank": 4})
    assert "train.rnk: no such parameter. Did you mean 'train.rank'?" in str(unknown.value)
    assert "rank: no such parameter" in str(unknown.value)
    with pytest.raises(ParamsError) as wrong:
        apply_overrides(root, {"train.rank": 0, "train.batch": "many"})
    assert "train.rank: Input should be greater than or equal to 1" in str(wrong.value)
    assert "train.batch" in str(wrong.value)
    assert str(root) not in str(wrong.value)
    assert (root / "params.yaml").read_bytes() == before
    assert [path.name for path in root.iterdir()] == ["params.yaml"]
