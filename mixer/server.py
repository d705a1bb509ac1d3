"""The page on this machine alone: a loopback address, and no other name in a request.

With BLOCKLENS_MIXER_IN_CONTAINER=1 it listens on all addresses of the container that it runs in,
since a port that Docker publishes arrives from outside of that. Who may come is then decided where
the port is published: docker/compose.yaml does it on 127.0.0.1. A request must name this machine
all the same.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

# Gradio reads both while it is imported: no calls home, and pictures beside our other state.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(".blocklens/mixer").absolute()))

# isort: split
import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from mixer.page import CSS
from stages.contracts.errors import HardwareError, Problem

HOSTS: Final = ("127.0.0.1", "localhost")
"""Where the page may be; a request that names another host, as a foreign page's would, gets 400."""


IN_CONTAINER: Final = "BLOCKLENS_MIXER_IN_CONTAINER"
_EVERYWHERE: Final = "0.0.0.0"


def require_free_port(host: str, port: int) -> None:
    """Accept a port that the page can listen on; asked before a model is loaded for minutes.

    Raises:
        HardwareError: another program has it, or this one may not.
    """
    try:
        with socket.create_server((_listening_host(host), port)):
            pass
    except (OSError, OverflowError) as error:
        what = f"cannot be listened on ({error})"
        problem = Problem(f"{host}:{port}", what, "End what has it, or name another with --port.")
        raise HardwareError("The page cannot be served", [problem]) from error


def _listening_host(host: str) -> str:
    """Return the address to listen on.

    Raises:
        ValueError: `host` is not this machine's own, or the variable is neither 0 nor 1.
    """
    if host not in HOSTS:
        raise ValueError(f"{host} is not this machine alone: expected {' or '.join(HOSTS)}")
    switch = os.environ.get(IN_CONTAINER, "0")
    if switch not in ("0", "1"):
        raise ValueError(f"{IN_CONTAINER} is {switch!r}: expected 1 in a container, else 0")
    return _EVERYWHERE if switch == "1" else host


def launch(page: gr.Blocks, host: str, port: int) -> str:
    """Start to serve the page and return its address; `page.close()` ends it.

    Raises:
        ValueError: `host` is not this machine's own, or the variable is neither 0 nor 1.
        OSError: the port is taken.
    """
    server_name = _listening_host(host)
    local = ["system-ui", "sans-serif"]  # the default theme asks Google for its letters
    _, address, _ = page.launch(
        server_name=server_name,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        css=CSS,
        theme=gr.themes.Base(font=local, font_mono=["ui-monospace", "monospace"]),
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS])]},
    )
    return str(address)
