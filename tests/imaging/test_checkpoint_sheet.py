"""Checkpoints x prompts."""

from __future__ import annotations

import numpy as np
import pytest

from stages.imaging.checkpoint_sheet import CheckpointRow, checkpoint_sheet


def row(value: int, *, chosen: bool = False, pictures: int = 2) -> CheckpointRow:
    """Return a row of pictures of one grey."""
    grey = np.full((64, 64, 3), value, dtype=np.uint8)
    return CheckpointRow("step 1", ["validation loss 0.5"], [grey] * pictures, chosen)


def test_every_picture_is_on_the_sheet() -> None:
    """Rows from top to bottom, and the chosen one in its frame."""
    sheet = checkpoint_sheet(["one", "two"], [row(10), row(200, chosen=True)])
    rows = [np.flatnonzero((sheet == value).all(axis=2).any(axis=1)) for value in (10, 200)]
    assert rows[0].max() < rows[1].min()
    assert (sheet == 10).all(axis=2).sum() == (sheet == 200).all(axis=2).sum() == 2 * 208 * 208
    plain = checkpoint_sheet(["one", "two"], [row(10), row(200)])
    assert sheet.shape == plain.shape
    assert (sheet != plain).any()


def test_no_prompts_leave_the_scores() -> None:
    """A run without sample prompts still has a sheet to look at."""
    assert checkpoint_sheet([], [row(0, pictures=0)]).shape[2] == 3


def test_what_does_not_fit_is_refused() -> None:
    """A row too short, no row, or more than a picture file can hold."""
    with pytest.raises(ValueError, match="expected rows of 2 pictures"):
        checkpoint_sheet(["one", "two"], [row(0, pictures=1)])
    with pytest.raises(ValueError, match="expected rows"):
        checkpoint_sheet([], [])
    with pytest.raises(ValueError, match="do not fit one sheet"):
        checkpoint_sheet(["one", "two"], [row(0)] * 300)
