"""Resumable state of a training: a run killed at any moment goes on from its last checkpoint."""

import logging
import time
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


class Checkpoint:
    """The state file of one training, written every `every_seconds` and at the end."""

    def __init__(self, path: Path, every_seconds: float) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self._last_save = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or None where the training has not begun."""
        if not self.path.exists():
            return None
        state: dict[str, Any] = torch.load(self.path, weights_only=True)
        logger.info("resuming from step %d of %s", state["step"], self.path)
        return state

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._last_save >= self.every_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the saved state; a kill in between leaves the old one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)
        self._last_save = time.monotonic()

    def clear(self) -> None:
        """Forgets the state once the training's output is written."""
        self.path.unlink(missing_ok=True)
