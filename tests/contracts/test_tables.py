"""Tables are checked on both sides of the disk and written as the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stages.contracts.errors import TableError
from stages.contracts.tables import HISTORY, SHARES, read_table, write_table


def shares() -> pd.DataFrame:
    """Return a small valid table."""
    return pd.DataFrame(
        {
            "block": ["single.1", "double.0"],
            "share": [0.25, 0.75],
            "low": [0.2, 0.7],
            "high": [0.3, 0.8],
            "prior": [0.5, 0.5],
        }
    )


def test_order_of_rows_does_not_change_the_bytes(tmp_path: Path) -> None:
    """Equal content is equal bytes, so that DVC reruns nothing."""
    write_table(SHARES, shares(), tmp_path / "a.csv")
    write_table(SHARES, shares().iloc[::-1], tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert list(read_table(SHARES, tmp_path / "a.csv")["block"]) == ["double.0", "single.1"]


def test_reading_what_was_written_gives_the_same_table(tmp_path: Path) -> None:
    """Empty numbers stay empty."""
    frame = pd.DataFrame(
        {
            "step": [0, 1],
            "loss": [float("nan"), 0.5],
            "gradient_norm": [float("nan"), 1.0],
            "learning_rate": [0.0, 0.001],
            "validation_loss": [0.75, float("nan")],
        }
    )
    write_table(HISTORY, frame, tmp_path / "history.csv")
    pd.testing.assert_frame_equal(read_table(HISTORY, tmp_path / "history.csv"), frame)


def test_all_faults_of_a_table_are_named(tmp_path: Path) -> None:
    """Column, rule and value, for every fault."""
    frame = shares()
    frame.loc[0, "block"] = "single.x"
    frame["prior"] = [-1.0, 0.5]
    with pytest.raises(TableError) as caught:
        write_table(SHARES, frame, tmp_path / "shares.csv")
    assert "column block" in str(caught.value)
    assert "column prior" in str(caught.value)
    assert not (tmp_path / "shares.csv").exists()


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A table that is not there or not ours is said so."""
    with pytest.raises(TableError, match="is missing"):
        read_table(SHARES, tmp_path / "shares.csv")
    (tmp_path / "shares.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(TableError, match="breaks the contract"):
        read_table(SHARES, tmp_path / "shares.csv")
    (tmp_path / "shares.csv").write_bytes(b"")
    with pytest.raises(TableError, match="is not the table"):
        read_table(SHARES, tmp_path / "shares.csv")
