"""A run without a server gets one, and hears at once if it cannot have it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows import local_server
from flows.local_server import ServerError, prefect_api
from tests.flows.conftest import processes_with


@pytest.fixture
def no_server(tmp_path: Path) -> Iterator[Path]:
    """Settings that name no server, with a Prefect home of their own."""
    with temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults={PREFECT_API_URL}):
        yield tmp_path


def test_named_server_is_used(no_server: Path) -> None:
    """Someone who runs a server wants to see the run there, and no second server."""
    url = "http://127.0.0.1:1/api"
    with temporary_settings({PREFECT_API_URL: url}), prefect_api():
        assert PREFECT_API_URL.value() == url
    assert list(no_server.iterdir()) == []


def test_server_that_cannot_start_is_reported_at_once(
    no_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's own way would wait for its whole time-out and not say why."""
    monkeypatch.setattr(local_server, "APPLICATION", "no_such_module:create_app")
    with pytest.raises(ServerError) as caught, prefect_api():
        pass
    message = str(caught.value)
    assert "ended with exit code" in message
    assert "no_such_module" in message
    assert "dvc repro" in message
    assert (no_server / "server.log").exists()


def test_server_that_does_not_answer_is_stopped(
    no_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs is given up after the limit, and does not stay behind."""
    (no_server / "hanging.py").write_text("import time; time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(no_server))
    monkeypatch.setattr(local_server, "APPLICATION", "hanging:create_app")
    monkeypatch.setattr(local_server, "_startup_limit_s", lambda: 1)
    start = time.monotonic()
    with pytest.raises(ServerError, match="did not answer within 1 s"), prefect_api():
        pass
    assert time.monotonic() - start < 30
    assert processes_with("hanging:create_app") == []
