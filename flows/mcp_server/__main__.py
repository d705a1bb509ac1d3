"""The door for other programs: an MCP server over HTTP on this machine, or over stdio.

    python -m flows.mcp_server [--stdio] [--host 127.0.0.1] [--port 4280] [--allow-host NAME:PORT]

Jobs go to the Prefect server of `make serve` (PREFECT_API_URL names another). What is sent here is
kept in BLOCKLENS_INBOX (data/inbox). docs/mcp.md has the tools and the limits.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import uvicorn

from flows import serve
from flows.mcp_server.access import Access, listening, read_access
from flows.mcp_server.inbox import open_inbox
from flows.mcp_server.server import PATH, build_server, http_application
from flows.mcp_server.tools import Workspace, open_workspace
from stages.contracts.errors import BlocklensError

PORT: Final = 4280
INBOX: Final = "data/inbox"
_STOP_GRACE_S: Final = 5
_log = logging.getLogger("flows.mcp_server")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal, or the end of the input, says otherwise."""
    parser = argparse.ArgumentParser(prog="python -m flows.mcp_server", description=__doc__)
    parser.add_argument("--stdio", action="store_true", help="serve the program that starts this")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME:PORT")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("flows").setLevel(logging.INFO)
    url = os.environ.get("PREFECT_API_URL") or f"http://{serve.HOST}:{serve.PORT}/api"
    try:
        access = None
        if not options.stdio:
            access = read_access(options.host, options.port, options.allow_host)
        with open_inbox(Path(os.environ.get("BLOCKLENS_INBOX", INBOX))) as inbox:
            workspace = open_workspace(Path.cwd(), inbox, url)
            if access is None:
                anyio.run(build_server(workspace, None).run_stdio_async)
            else:
                _serve_http(workspace, access)
    except BlocklensError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        _log.info("stopped")


def _serve_http(workspace: Workspace, access: Access) -> None:
    config = uvicorn.Config(
        http_application(workspace, access),
        log_level="warning",
        timeout_graceful_shutdown=_STOP_GRACE_S,
    )
    with listening(access) as listener:
        _log.info("MCP: http://%s:%d%s (Ctrl-C stops it)", access.host, access.port, PATH)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
