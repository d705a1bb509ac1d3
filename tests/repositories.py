"""Git in the tests' own repositories."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(project: Path, *arguments: str) -> str:
    """Return what git printed, by a user of its own; its failure is a failure of the test."""
    author = ["-c", "user.name=toy", "-c", "user.email=toy@example.org"]
    command = ["git", *author, *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    return done.stdout.removesuffix("\n")
