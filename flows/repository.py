"""Git, as a child process, for whatever a flow reads and commits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stages.contracts.errors import BlocklensError

_IDENTITY: Final = {
    "GIT_AUTHOR_NAME": "blocklens",
    "GIT_AUTHOR_EMAIL": "blocklens@localhost",
    "GIT_COMMITTER_NAME": "blocklens",
    "GIT_COMMITTER_EMAIL": "blocklens@localhost",
}
"""Who commits where git has no user: git and DVC refuse without one."""

_STRICT: Final = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "user.useConfigOnly",
    "GIT_CONFIG_VALUE_0": "true",
}
"""Git would make up a name from the account and the host; DVC does not."""


class GitError(BlocklensError, RuntimeError):
    """Git refused; the message is its own."""


def run_git(root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Return what a git command prints in `root`, without the last line's end.

    Raises:
        GitError: git fails.
    """
    done = subprocess.run(
        ["git", *arguments],
        cwd=root,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise GitError(f"git {' '.join(arguments)} in {root}: {done.stderr.strip()}")
    return done.stdout.removesuffix("\n")


def read_blob(root: Path, revision: str, path: str) -> bytes | None:
    """Return the bytes of a file as a revision has them; None where it has no such file."""
    command = ["git", "show", f"{revision}:{path}"]
    done = subprocess.run(command, cwd=root, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def committer(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what an environment needs so that commits in `root` have a user: often nothing."""
    named = subprocess.run(
        ["git", "var", "GIT_COMMITTER_IDENT"],
        cwd=root,
        env={**environment, **_STRICT},
        capture_output=True,
        check=False,
    )
    if named.returncode == 0:
        return {}
    return {name: value for name, value in _IDENTITY.items() if name not in environment}
