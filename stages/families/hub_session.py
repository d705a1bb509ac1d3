"""No request to the Hub waits for ever.

huggingface_hub gives its listings no time limit (hf_api, list_repo_tree), so that a server that
accepts a connection and then says nothing stops a run for good.
"""

from __future__ import annotations

from functools import cache

import httpx2
import huggingface_hub
from huggingface_hub.utils._http import default_client_factory


@cache
def bound_waiting() -> None:
    """Let each request without a time limit wait HF_HUB_DOWNLOAD_TIMEOUT seconds (10) at most."""
    huggingface_hub.set_client_factory(_bounded_client)


def _bounded_client() -> httpx2.Client:
    client = default_client_factory()
    client.event_hooks["request"].append(_bound)
    return client


def _bound(request: httpx2.Request) -> None:
    limit_s = float(huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT)
    limits = request.extensions.get("timeout", {})
    if all(limits.get(kind) is None for kind in ("connect", "read", "write", "pool")):
        request.extensions["timeout"] = httpx2.Timeout(limit_s).as_dict()
