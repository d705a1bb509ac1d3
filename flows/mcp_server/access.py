"""Who may come in: where the server listens, the bearer token, the Host and Origin of a request.

On loopback a token is optional, anywhere else there is no server without one. Host and Origin are
compared with lists, so that a web page that a name server points at this machine (DNS rebinding)
gets nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings

from stages.contracts.errors import BlocklensError

TOKEN: Final = "BLOCKLENS_MCP_TOKEN"
TOKEN_CHARACTERS: Final = 24
"""A token is at least so long: `openssl rand -hex 32` gives 64."""

_LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")


class AccessError(BlocklensError, ValueError):
    """The server would listen where it must not, or without what protects it."""


@dataclass(frozen=True)
class OneToken:
    """The SDK's verifier of bearer tokens: there is one, and it is compared in constant time."""

    token: str

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return who comes with this token, or None."""
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
        return AccessToken(token=token, client_id="blocklens", scopes=[])


@dataclass(frozen=True)
class Access:
    """Where to listen, what a request has to carry, and which names of this server it may use."""

    host: str
    port: int
    verifier: OneToken | None
    security: TransportSecuritySettings

    @property
    def auth(self) -> AuthSettings | None:
        """The SDK's settings: this server itself gives out no tokens."""
        if self.verifier is None:
            return None
        issuer = f"http://{_in_url(self.host)}:{self.port}"
        return AuthSettings.model_validate({"issuer_url": issuer, "resource_server_url": None})


def read_access(host: str, port: int, allowed_hosts: Sequence[str]) -> Access:
    """Return the access that host, port and the token in the environment ask for.

    Args:
        host: address to listen on.
        port: port to listen on.
        allowed_hosts: what the Host of a request may be besides (NAME:PORT, as a proxy sends it).

    Raises:
        AccessError: the token is missing or short, or the server would not know its own name.
    """
    token = os.environ.get(TOKEN, "")
    loopback = is_loopback(host)
    if not loopback and not token:
        raise AccessError(
            f"{host} is not this machine alone: set {TOKEN} to a long random text, such as that "
            "of `openssl rand -hex 32`, or listen on 127.0.0.1"
        )
    if token and (len(token) < TOKEN_CHARACTERS or not token.isascii() or not token.isprintable()):
        raise AccessError(f"{TOKEN} must be at least {TOKEN_CHARACTERS} printable ASCII characters")
    if _is_any(host) and not allowed_hosts:
        raise AccessError(
            f"{host} has no name of its own: say with --allow-host NAME:{port} how clients call it"
        )
    own = _LOOPBACK_NAMES if loopback else (_in_url(host),)
    hosts = [*(f"{name}:{port}" for name in own), *allowed_hosts]
    origins = [f"{scheme}://{name}" for scheme in ("http", "https") for name in hosts]
    security = TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)
    return Access(host, port, OneToken(token) if token else None, security)


def listening(access: Access) -> socket.socket:
    """Return a socket that listens; it is to be closed.

    Raises:
        AccessError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    try:
        return socket.create_server((access.host, access.port), family=family)
    except OSError as error:
        raise AccessError(
            f"{access.host}:{access.port} cannot be listened on ({error.strerror}): stop what "
            f'listens there, or name another with --port (make mcp MCP="--port {access.port + 1}")'
        ) from error


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address; names other than localhost do not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
