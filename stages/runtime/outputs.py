"""A stage's output folder: the old one or the new one, never half of each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that takes the place of `out` when the block succeeds.

    Files that git or DVC keep in `out` (`.gitignore`) move along. After an exception or a kill
    `out` is what it was; a leftover sibling is removed by the next run.
    """
    work = out.with_name(f".{out.name}.new")
    old = out.with_name(f".{out.name}.old")
    _recover(out, old)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    keep = out / ".gitignore"
    if keep.exists():
        shutil.copy2(keep, work / ".gitignore")
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _recover(out: Path, old: Path) -> None:
    """Undo a run that was killed between its two renames."""
    if not old.exists():
        return
    if out.exists():
        shutil.rmtree(old)
    else:
        old.rename(out)
