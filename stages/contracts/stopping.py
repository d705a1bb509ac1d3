"""How long a run that is asked to stop may take to save its state, wherever it was started."""

from __future__ import annotations

from typing import Final

SAVING_S: Final = 900
"""Seconds from Ctrl-C or SIGTERM to SIGKILL: a step, its validation and its pictures."""
