"""Progress of a long loop: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_LOG_EVERY_S = 15.0
_GIGABYTE: Final = 10**9
_BYTES_ON_DISK: Final = "Reconstructing"
"""How huggingface_hub calls its bar of bytes that are written; it has others beside it."""

_log = logging.getLogger(__name__)


def track(
    items: Iterable[Item], total: int, what: str, detail: Callable[[], str] = str
) -> Iterator[Item]:
    """Yield `items` while showing how many of `total` are done and how long is left.

    `detail` says after an item what else is to be seen; nothing by default. Of several processes
    that a launcher started, the first one shows it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield from items
        return
    if sys.stderr.isatty():
        bar = tqdm(items, total=total, desc=what, dynamic_ncols=True, disable=False)
        for item in bar:
            yield item
            bar.set_postfix_str(detail(), refresh=False)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == total or now - last >= _LOG_EVERY_S:
            last = now
            left = (now - started) / done * (total - done)
            more = ", ".join(filter(None, (f"{left:.0f} s left", detail())))
            _log.info("%s: %d of %d, %s", what, done, total, more)


def in_gigabytes(size_bytes: float) -> str:
    """Return a size for people: `33.7 GB`, and smaller ones as `0.021 GB`."""
    return f"{size_bytes / _GIGABYTE:.{1 if size_bytes >= _GIGABYTE else 3}f} GB"


def transfer_bar() -> type[tqdm[Any]] | None:
    """Return the class of bars for huggingface_hub's downloads: None on a terminal, its own."""
    return None if sys.stderr.isatty() else _LoggedBytes


class _LoggedBytes(tqdm):  # type: ignore[type-arg]
    """tqdm's counter without its bar: a line in the log at first and then every 15 seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._logged_s: float | None = None
        # `disable`: TQDM_DISABLE is meant for bars. `mininterval`: display() decides.
        own = {"disable": False, "file": io.StringIO(), "mininterval": 0.0, "miniters": 1}
        super().__init__(*arguments, **options | own)

    def display(self, *_: Any, **__: Any) -> None:
        """Write a line if one is due; the bar itself is shown nowhere."""
        now, total = time.monotonic(), self.total or self.n
        due = self._logged_s is None or now - self._logged_s >= _LOG_EVERY_S or self.n == total
        if due and self.n and str(self.desc).startswith(_BYTES_ON_DISK):
            self._logged_s = now
            state = self.format_dict
            rate = state["rate"] or self.n / max(state["elapsed"], 1e-3)
            sizes = in_gigabytes(self.n), in_gigabytes(total), in_gigabytes(rate)
            _log.info("downloaded %s of %s, %s/s, %.0f s left", *sizes, (total - self.n) / rate)
