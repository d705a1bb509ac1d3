#!/usr/bin/python3
"""Exit code 0 if the container is well, else 1 with a reason: docker/README.md.

    healthcheck [URL]

With an address: it answers, and with no error of the server's own (a report that is not there yet
is none). Without: the checkout is there, and the volumes can be written.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 10.0
SERVER_ERROR = 500


def main(arguments: Sequence[str]) -> None:
    """Check what the command line names."""
    reason = _unanswered(arguments[0]) if arguments else _unusable(Path("/data"), Path("/cache"))
    if reason is not None:
        sys.exit(reason)


def _unanswered(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        return f"{url}: {error}" if error.code >= SERVER_ERROR else None
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        return f"{url}: {error}"


def _unusable(checkout: Path, cache: Path) -> str | None:
    if not (checkout / "dvc.yaml").is_file():
        return f"{checkout} holds no checkout yet"
    for folder in (checkout, cache):
        if not os.access(folder, os.W_OK):
            return f"{folder} is not writable for user {os.getuid()}"
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
