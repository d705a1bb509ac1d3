"""Who may come in over HTTP."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from flows.mcp_server.access import AccessError, is_loopback, listening, read_access
from flows.mcp_server.limits import REQUEST_BYTES
from flows.mcp_server.server import PATH, http_application
from flows.mcp_server.tools import Workspace
from tests.flows.mcp_server.conftest import ROOT

LONG = "a-token-that-is-long-enough"
HOST = "127.0.0.1:4280"
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def over_http(workspace: Workspace, work: Callable[[httpx2.AsyncClient], Awaitable[Any]]) -> Any:
    """Return what `work` returns, given a plain HTTP client of the server on 127.0.0.1:4280."""
    application = http_application(workspace, read_access("127.0.0.1", 4280, []))

    async def connected() -> Any:
        transport = httpx2.ASGITransport(application)
        async with (
            application.router.lifespan_context(application),
            httpx2.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client,
        ):
            return await work(client)

    return anyio.run(connected)


def status(workspace: Workspace, headers: dict[str, str], **sent: Any) -> int:
    """Return how the server answers a request with these headers."""
    content = sent or {"json": LIST}

    async def ask(client: httpx2.AsyncClient) -> int:
        return (await client.post(PATH, headers=ACCEPT | headers, **content)).status_code

    found: int = over_http(workspace, ask)
    return found


def test_host_and_origin_are_compared(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of another name that points at this machine (DNS rebinding) gets nothing."""
    monkeypatch.delenv("BLOCKLENS_MCP_TOKEN", raising=False)
    known = status(workspace, {})
    assert known not in (401, 403, 421)
    assert status(workspace, {"Origin": f"http://{HOST}"}) == known
    for host in ("evil.example", "evil.example:4280", "127.0.0.1.evil.example:4280", "127.0.0.1"):
        assert status(workspace, {"Host": host}) == 421, host
    for origin in ("http://evil.example", "null", "http://127.0.0.1:4280.evil.example", "file://"):
        assert status(workspace, {"Origin": origin}) == 403, origin


def test_a_token_is_compared(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a token, nothing is answered without it."""
    monkeypatch.setenv("BLOCKLENS_MCP_TOKEN", LONG)
    for headers in (
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {LONG}x"},
        {"Authorization": f"Bearer {LONG[:-1]}"},
        {"Authorization": f"Basic {LONG}"},
        {"Authorization": LONG},
        {"Cookie": f"token={LONG}"},
    ):
        assert status(workspace, headers) == 401, headers
    assert status(workspace, {"Authorization": f"Bearer {LONG}"}) not in (401, 403, 421)


def test_a_request_has_a_size_and_a_kind(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body without end is not kept, and a form of a web page is none of ours."""
    monkeypatch.delenv("BLOCKLENS_MCP_TOKEN", raising=False)
    json = {"Content-Type": "application/json"}
    assert status(workspace, json, content=b" " * (REQUEST_BYTES + 1)) == 413
    form = {"Content-Type": "text/plain"}
    assert status(workspace, form, content=b"{}") == 400


def test_off_loopback_there_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens this to a network has to say for whom, and under which name."""
    monkeypatch.delenv("BLOCKLENS_MCP_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com", ""):
        with pytest.raises(AccessError, match="is not this machine alone"):
            read_access(host, 4280, ["a:1"])
    for token in ("short", "ü" * 40, "a" * 30 + "\n"):
        monkeypatch.setenv("BLOCKLENS_MCP_TOKEN", token)
        with pytest.raises(AccessError, match="must be at least 24 printable ASCII characters"):
            read_access("127.0.0.1", 4280, [])
    monkeypatch.setenv("BLOCKLENS_MCP_TOKEN", LONG)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(AccessError, match="--allow-host"):
            read_access(host, 4280, [])
    access = read_access("0.0.0.0", 4280, ["studio.example:443"])
    assert access.security.allowed_hosts == ["0.0.0.0:4280", "studio.example:443"]
    assert access.security.enable_dns_rebinding_protection
    assert access.verifier is not None
    assert LONG not in repr(access.auth)
    assert is_loopback("127.8.8.8")
    assert is_loopback("::1")
    assert not is_loopback("localhost.example")


def test_a_taken_port_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, not a traceback."""
    monkeypatch.delenv("BLOCKLENS_MCP_TOKEN", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        access = read_access("127.0.0.1", taken.getsockname()[1], [])
        with pytest.raises(AccessError, match="name another with --port"):
            listening(access)


@pytest.mark.slow
def test_the_program_refuses_to_be_open_to_all(tmp_path: Path) -> None:
    """`python -m flows.mcp_server --host 0.0.0.0` without a token ends at once, with the reason."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.mcp_server", "--host", "0.0.0.0"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PREFECT_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "set BLOCKLENS_MCP_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
