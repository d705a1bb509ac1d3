"""A workspace for the tools in a temporary folder, and the SDK's own client to call them with."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer
from PIL import Image

from flows.mcp_server.inbox import open_inbox
from flows.mcp_server.server import build_server
from flows.mcp_server.tools import Workspace
from flows.mcp_server.uploads import Uploads

ROOT = Path(__file__).parents[3]
NOWHERE = "http://127.0.0.1:9/api"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """An empty inbox beside this checkout's presets; no Prefect server answers."""
    with opened_house(tmp_path) as opened:
        yield opened


@contextlib.contextmanager
def opened_house(folder: Path) -> Iterator[Workspace]:
    """Give a workspace with its inbox and an empty cache in `folder`."""
    with open_inbox(folder / "workspace" / "inbox") as inbox:
        yield Workspace(ROOT, folder / "workspace" / "cache", inbox, Uploads(inbox), NOWHERE)


@functools.lru_cache(maxsize=4)
def server_of(workspace: Workspace) -> MCPServer[Any]:
    """Return the server of a workspace: its 21 schemas take a while to make."""
    return build_server(workspace, None)


def with_client(workspace: Workspace, work: Callable[[Client], Awaitable[Any]]) -> Any:
    """Return what `work` returns, given a connected client of the SDK."""

    async def connected() -> Any:
        async with Client(server_of(workspace)) as client:
            return await work(client)

    return anyio.run(connected)


def call(workspace: Workspace, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return the answer of a tool; its refusal fails the test."""
    is_error, text = ask(workspace, tool, **arguments)
    assert not is_error, text
    answer: dict[str, Any] = json.loads(text)
    return answer


def refusal(workspace: Workspace, tool: str, **arguments: Any) -> str:
    """Return what a tool says against a call; its answer fails the test."""
    is_error, text = ask(workspace, tool, **arguments)
    assert is_error, text
    return text


def ask(workspace: Workspace, tool: str, **arguments: Any) -> tuple[bool, str]:
    """Return whether a tool refuses, and the text of its answer."""
    result = with_client(workspace, lambda client: client.call_tool(tool, arguments))
    return bool(result.is_error), result.content[0].text


def encoded(content: bytes) -> str:
    """Return bytes as they are sent."""
    return base64.b64encode(content).decode()


def png(side_px: int = 8, shade: int = 0) -> bytes:
    """Return a small picture."""
    buffer = io.BytesIO()
    pixels = np.full((side_px, side_px, 3), shade, dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(name: str, **more: Any) -> dict[str, Any]:
    """Return a small picture as it is sent."""
    return {"name": name, "data": encoded(png()), **more}
