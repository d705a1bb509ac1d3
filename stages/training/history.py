"""The history of a run as a table, whole at any moment of the run."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from stages.training.state import Journal


def history_table(journal: Journal) -> pd.DataFrame:
    """Return the table HISTORY of the steps that were taken so far."""
    frame = pd.DataFrame([asdict(row) for row in journal.history])
    return frame.astype({name: float for name in frame.columns if name != "step"})
