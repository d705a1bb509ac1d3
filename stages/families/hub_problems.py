"""What a failure of the Hugging Face Hub means for the person who runs us, and what to do.

No message quotes a request or an answer's body: neither the token nor a signed address can get
into a log.
"""

from __future__ import annotations

import errno
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

from stages.contracts.errors import Problem

UNGATED: Final = "ostris/Flex.1-alpha"
"""A FLUX-like base model under Apache-2.0 that needs no token."""

FAILURES: Final = (httpx2.HTTPError, HFValidationError, OSError)
"""What huggingface_hub raises when files are not to be had."""

NO_CONNECTION: Final = (httpx2.TransportError, ConnectionError, TimeoutError)
"""Those of them that say that nobody was asked; OfflineModeIsEnabled is among them."""

_LOG_IN: Final = "set HF_TOKEN or run `hf auth login`"
_TOKENS_PAGE: Final = "https://huggingface.co/settings/tokens"
_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _SERVER_FAULT = 401, 403, 429, 500
_FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def page_of(repository: str) -> str:
    """Return the address of a repository's page, for a person to look at."""
    return f"https://huggingface.co/{repository}"


def cache_folder() -> Path:
    """Return the folder in which huggingface_hub keeps what it downloads."""
    return Path(huggingface_hub.constants.HF_HUB_CACHE).absolute()


def hub_problem(error: Exception, repository: str, revision: str) -> Problem:
    """Return what a failure of huggingface_hub means.

    The order matters: huggingface_hub's errors derive from each other and wrap each other, and
    its "not in the cache" error hides the reason why the Hub was not asked.
    """
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        if isinstance(cause, Exception):
            return hub_problem(cause, repository, revision)
        return _offline_problem(repository)
    if isinstance(error, OfflineModeIsEnabled):
        return _offline_problem(repository)
    if isinstance(error, HfHubHTTPError):
        return _answer_problem(error, repository, revision)
    if isinstance(error, HFValidationError):
        return Problem(repository, "not a repository name", "Write it as owner/name.")
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        what = f"no space left in {cache_folder()}"
        return Problem(repository, what, "Free space, or set HF_HOME to another disk.")
    if isinstance(error, PermissionError):
        what = f"may not write into {cache_folder()}"
        return Problem(repository, what, "Give yourself the right, or set HF_HOME to a folder.")
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        what = "the Hub answers too slowly"
        remedy = "Run `dvc repro` again; HF_HUB_DOWNLOAD_TIMEOUT sets the seconds to wait."
        return Problem(repository, what, remedy)
    if isinstance(error, httpx2.HTTPError | ConnectionError):
        what = f"the Hub does not answer ({type(error).__name__})"
        return Problem(repository, what, "Check network and proxy, then run `dvc repro` again.")
    what = f"download broken off ({type(error).__name__})"
    return Problem(repository, what, "Run `dvc repro` again; whole files are kept.")


def token_problem() -> Problem | None:
    """Return what is wrong with the token's spelling, or None; the token itself is not in it.

    Without this check a line break in a token ends in an error that quotes the whole header.
    """
    token = huggingface_hub.get_token()
    if token is None or (token.isascii() and token.isprintable() and " " not in token):
        return None
    what = "holds characters that no token has (spaces, line breaks or letters beyond a-z)"
    return Problem("the token", what, f"Copy it again from {_TOKENS_PAGE}.")


def _offline_problem(repository: str) -> Problem:
    what = "not complete in the cache, and HF_HUB_OFFLINE forbids downloads"
    return Problem(repository, what, "Unset HF_HUB_OFFLINE once to fetch the files.")


def _answer_problem(error: HfHubHTTPError, repository: str, revision: str) -> Problem:
    """Return what an answer of the Hub means that is not the file that was asked for."""
    status = error.response.status_code
    page = page_of(repository)
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
        return Problem(repository, what, f"Give it that right at {_TOKENS_PAGE}.")
    if isinstance(error, GatedRepoError):
        if not logged_in:
            what = "gated, and there is no token"
            instead = f"{UNGATED} (Apache-2.0) needs no token."
            remedy = f"Accept the licence at {page} and {_LOG_IN}; {instead}"
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
