"""Pinned downloads from the Hugging Face Hub, and its failures in words that say what to do.

The token comes from HF_TOKEN or from the login that huggingface_hub keeps. It is never read here,
and no message quotes a request: neither the token nor a signed address can get into a log.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx2
import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.contracts.errors import Problem, WeightsError

UNGATED: Final = "ostris/Flex.1-alpha"
"""A FLUX-like base model under Apache-2.0 that needs no token."""

_LOG_IN: Final = "set HF_TOKEN or run `hf auth login`"
_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _SERVER_FAULT = 401, 403, 429, 500
_FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def download(
    repository: str, revision: str, patterns: Sequence[str], ignored: Sequence[str] = ()
) -> Path:
    """Return the folder in the Hub's cache that holds the matching files of a repository.

    Files that are there are not downloaded again, and a connection that breaks is taken up where
    it stopped (to 10 MB), five times in a row. Without network the folder is returned if nothing
    is missing in it.

    Args:
        repository: such as black-forest-labs/FLUX.1-dev.
        revision: commit hash, 40 hexadecimal digits.
        patterns: shell patterns of the paths that are wanted.
        ignored: shell patterns of those that are not.

    Raises:
        WeightsError: the files are not to be had; says why, and what to do.
    """
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
        )
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        problem = hub_problem(error, repository, revision)
        # Without the cause: it holds the request, and with it the token.
        raise WeightsError(f"{repository} cannot be downloaded", [problem]) from None
    return Path(folder)


def hub_problem(error: Exception, repository: str, revision: str) -> Problem:
    """Return what a failure of huggingface_hub means for the person who runs us.

    The order matters: huggingface_hub's errors derive from each other and wrap each other, and
    its "not in the cache" error hides the reason why the Hub was not asked.
    """
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        if isinstance(cause, OfflineModeIsEnabled) or cause is None:
            what = "not complete in the cache, and HF_HUB_OFFLINE forbids downloads"
            return Problem(repository, what, "Unset HF_HUB_OFFLINE once to fetch the files.")
        return hub_problem(cause if isinstance(cause, Exception) else error, repository, revision)
    if isinstance(error, HfHubHTTPError):
        return _answer_problem(error, repository, revision)
    if isinstance(error, HFValidationError):
        return Problem(repository, "not a repository name", "Write it as owner/name.")
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        cache = huggingface_hub.constants.HF_HUB_CACHE
        what = f"no space left in {cache}"
        return Problem(repository, what, "Free space, or set HF_HOME to another disk.")
    if isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError):
        what = f"the Hub does not answer ({type(error).__name__})"
        return Problem(repository, what, "Check network and proxy, then run `dvc repro` again.")
    what = f"download broken off ({type(error).__name__})"
    return Problem(repository, what, "Run `dvc repro` again; whole files are kept.")


def _answer_problem(error: HfHubHTTPError, repository: str, revision: str) -> Problem:
    """Return what an answer of the Hub means that is not the file that was asked for."""
    status = error.response.status_code
    page = f"https://huggingface.co/{repository}"
    if isinstance(error, RevisionNotFoundError):
        what = f"has no revision {revision}"
        return Problem(repository, what, f"Copy a commit hash from {page}/commits/main.")
    if isinstance(error, RemoteEntryNotFoundError):
        return Problem(repository, "a file is not there", f"Look at {page}/tree/{revision}.")
    if isinstance(error, RepositoryNotFoundError) or status in (_UNAUTHORIZED, _FORBIDDEN):
        return _access_problem(error, repository, page)
    if status == _TOO_MANY:
        return Problem(repository, "the Hub asks for a pause (429)", "Wait some minutes.")
    if status >= _SERVER_FAULT:
        what = f"the Hub is out of order ({status})"
        return Problem(repository, what, "Run `dvc repro` again later.")
    return Problem(repository, f"the Hub refuses the request ({status})", f"Look at {page}.")


def _access_problem(error: HfHubHTTPError, repository: str, page: str) -> Problem:
    status = error.response.status_code
    logged_in = huggingface_hub.get_token() is not None
    said = f"{error.server_message or ''} {error.response.headers.get('X-Error-Message', '')}"
    if "gated repositories" in said:
        what = "the token has no right to read gated repositories"
        remedy = "Give it that right at https://huggingface.co/settings/tokens."
        return Problem(repository, what, remedy)
    if isinstance(error, GatedRepoError):
        if not logged_in:
            what = "gated, and there is no token"
            remedy = f"Accept the licence at {page} and {_LOG_IN}; {UNGATED} needs no token."
            return Problem(repository, what, remedy)
        if status == _FORBIDDEN:
            what = "the licence is not accepted for the account of this token"
            return Problem(repository, what, f"Accept it at {page}, with the same account.")
    if logged_in and status == _UNAUTHORIZED:
        what = "the Hub refuses the token (wrong, expired or revoked)"
        return Problem(repository, what, f"Make a new one and {_LOG_IN}.")
    if status == _FORBIDDEN:
        return Problem(repository, "access forbidden (403)", f"See who may read {page}.")
    what = "not found" if logged_in else "not found, or private and there is no token"
    return Problem(repository, what, f"Check the name; if it is private, {_LOG_IN}.")
