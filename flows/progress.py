"""How far a stage is, as Prefect's progress artifacts, read from the lines that it logs.

Stages know no Prefect: they log `train: 120 of 300, 95 s left` (stages/runtime/progress.py).
"""

from __future__ import annotations

import logging
import re
from typing import Final
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

_LINE: Final = re.compile(r"^(?P<what>.+?): (?P<state>(?P<done>\d+) of (?P<total>\d+), .+ left.*)$")
_log = logging.getLogger(__name__)


class ProgressBoard:
    """The progress artifacts of one stage's run: one for each of its loops."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifacts: dict[str, UUID] = {}

    def follow(self, line: str) -> None:
        """Show the progress that a line of the stage reports; other lines change nothing.

        A server that cannot be reached costs a warning and not the run: the line is in the log.
        """
        match = _LINE.match(line)
        if match is None or int(match["total"]) == 0:
            return
        percent = 100.0 * int(match["done"]) / int(match["total"])
        try:
            self._show(artifact_key(self._stage, match["what"]), percent, match["state"])
        except (httpx.HTTPError, PrefectException) as error:
            _log.warning("%s: progress is not shown: %s", self._stage, error)

    def _show(self, key: str, percent: float, state: str) -> None:
        if known := self._artifacts.get(key):
            update_progress_artifact(known, percent, state)
        else:
            made = create_progress_artifact(percent, key, state)
            assert isinstance(made, UUID)  # not awaited: a task's function is no coroutine
            self._artifacts[key] = made


def artifact_key(stage: str, what: str) -> str:
    """Return an artifact's key for a loop of a stage: `slim: pictures` is progress-slim-pictures.

    Prefect takes lower-case letters, digits and dashes.
    """
    loop = what.removeprefix(stage)
    words = re.findall(r"[a-z0-9]+", f"progress {stage} {loop}".lower())
    return "-".join(words)
