"""A finished experiment as text: made by a worker, unpacked in the clone that asked for it.

It is a git bundle of the experiment's commit alone: dvc.lock, params, metrics and small tables.
What DVC caches stays in the cache.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path

from flows.repository import GitError, run_git


def pack(root: Path, name: str) -> str:
    """Return the experiment `name` of the current commit; empty if it is that commit itself.

    Raises:
        GitError: there is no such experiment.
    """
    head, reference = _place(root, name)
    if run_git(root, "rev-parse", reference) == head:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.bundle"
        run_git(root, "bundle", "create", "--quiet", str(file), reference, f"^{head}")
        return base64.b64encode(file.read_bytes()).decode()


def unpack(root: Path, name: str, text: str) -> None:
    """Make what `pack` returned, in another clone at the same commit, an experiment of `root`.

    No other reference is touched. An experiment that has this name already is replaced.

    Raises:
        GitError: the text is none of `pack`, or is about another name or commit.
    """
    head, reference = _place(root, name)
    if not text:
        run_git(root, "update-ref", reference, head)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.bundle"
        try:
            file.write_bytes(base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise GitError(f"{name}: what came back is no experiment: {error}") from error
        run_git(root, "fetch", "--quiet", "--no-tags", str(file), f"+{reference}:{reference}")


def _place(root: Path, name: str) -> tuple[str, str]:
    """Return the current commit and the reference that DVC gives an experiment of it."""
    head = run_git(root, "rev-parse", "HEAD")
    return head, f"refs/exps/{head[:2]}/{head[2:]}/{name}"
