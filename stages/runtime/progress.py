"""Progress of a long loop: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_LOG_EVERY_S = 15.0
_log = logging.getLogger(__name__)


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield `items` while showing how many of `total` are done and how long is left."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, dynamic_ncols=True, disable=False)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == total or now - last >= _LOG_EVERY_S:
            last = now
            left = (now - started) / done * (total - done)
            _log.info("%s: %d of %d, %.0f s left", what, done, total, left)
