"""A flow as a command: its server, and what a shell is told at the end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import flows.environment  # noqa: F401  sets what prefect reads while it is imported

# isort: split
from prefect.client.schemas.objects import State

from flows.local_server import prefect_api
from stages.contracts.errors import BlocklensError


def run_to_exit(start: Callable[[], State[Any]]) -> None:
    """Run a flow with an API; exit with 1 and its message if it fails, with 130 on Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        with prefect_api():
            state = start()
    except BlocklensError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if not state.is_completed():
        sys.exit(state.message)
