"""The whole way of another program: pictures in, train, evaluate, the slim LoRA out, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from safetensors.torch import load

from tests.flows.mcp_server.conftest import encoded
from tests.flows.test_serve import free_port
from tests.repositories import git
from tests.small_run import QUICK, clone, read_params

TOKEN = "a-token-of-the-round-trip-test"
LIMIT_S = 1200.0
FEW_PICTURES = {
    "render.modes": ["only"],
    "render.without_trigger_modes": [],
    "render.strengths": [],
    "render.groups": {},
    "render.subsets": {},
}
"""One picture per block is enough here; tests/test_end_to_end.py has them all."""


@dataclass(frozen=True)
class Served:
    """A project with Prefect and the door: its folder, and both addresses."""

    source: Path
    prefect: str
    door: str


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """The whole pipeline in a repository of its own, `make serve` and `make mcp` beside it."""
    source = tmp_path / "source"
    source.mkdir()
    clone(source)
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", "all")
    prefect_port, door_port = free_port(), free_port()
    prefect, door = f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{door_port}/mcp"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"{prefect}/api",
        "BLOCKLENS_MCP_TOKEN": TOKEN,
        "PYTHONPATH": str(source),
    }
    serve = ["flows.serve", "--port", str(prefect_port), "--clone", "../worker"]
    with (
        running(source, environment, "Prefect: http", *serve),
        running(source, environment, "MCP: http", "flows.mcp_server", "--port", str(door_port)),
    ):
        yield Served(source, prefect, door)


@contextlib.contextmanager
def running(source: Path, environment: dict[str, str], sign: str, *module: str) -> Iterator[None]:
    """Run a program of the project, from the line that holds `sign` to Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=source,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        said = ""
        while sign not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """A client that brings the token."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=120) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return the answer of a tool."""
    result = await client.call_tool(tool, arguments)
    text = result.content[0].text  # type: ignore[union-attr]
    assert not result.is_error, text
    answer: dict[str, Any] = json.loads(text)
    return answer


async def finished(client: Client, job: str) -> dict[str, Any]:
    """Return the status of a job once it has ended well."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        status = await call(client, "get-training-status", job=job)
        if status["ended"]:
            logs = await call(client, "get-training-logs", job=job)
            assert status["state"] == "Completed", (status, logs)
            assert any("Running stage" in line for line in logs["lines"]), logs
            return status
        assert time.monotonic() < deadline, status
        await anyio.sleep(1.0)


async def download(client: Client, model: str) -> bytes:
    """Return a LoRA, fetched piece by piece."""
    content = b""
    offset: int | None = 0
    while offset is not None:
        piece = await call(client, "download-model", model=model, offset=offset)
        content += base64.b64decode(piece["data"])
        offset = piece["next_offset"]
    assert hashlib.sha256(content).hexdigest() == piece["sha256"]
    return content


def sent(folder: Path) -> list[dict[str, str]]:
    """Return the files of a folder as they are sent."""
    return [
        {
            "name": path.name,
            "data": encoded(path.read_bytes()),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.iterdir())
    ]


def quick_overrides(source: Path) -> dict[str, Any]:
    """Return the small run's params as changes of the preset."""
    params = read_params(source)
    names = [f"{section}.{key}" for section, values in QUICK.items() for key in values]
    names += [f"prompts.{key}" for key in ("develop", "held_out", "without_trigger")]
    values = {name: params[name.split(".")[0]][name.split(".")[1]] for name in names}
    return values | FEW_PICTURES


@pytest.mark.slow
def test_pictures_go_in_and_a_slim_lora_comes_out(served: Served) -> None:
    """24 pictures up, trained on nano, every block evaluated, the slim LoRA down; a stop; a log."""

    async def round_trip() -> None:
        async with connected(served.door) as client:
            demo = served.source / "data/demo"
            for split in ("train", "validation"):
                files = sent(demo / split)
                await call(client, "upload-dataset", dataset="robot", split=split, files=files)
            listed = (await call(client, "list-datasets"))["datasets"]
            assert listed[0]["train"]["pictures"] == 24
            made = {"config": "quick", "preset": "nano-flux"}
            changes = quick_overrides(served.source)
            await call(client, "create-training-config", **made, overrides=changes)
            chosen = {"dataset": "robot", "config": "quick"}
            training = await call(client, "start-training", **chosen, name="first")
            waiting = await call(client, "start-training", **chosen, name="second")
            stopped = await call(client, "stop-training", job=waiting["job"])
            assert stopped["state"] in ("Cancelled", "Cancelling")
            trained = await finished(client, training["job"])
            assert {"stage": "train", "state": "Ran"} in trained["stages"]
            evaluation = await call(client, "evaluate-blocks", model=f"{training['job']}.adapter")
            evaluated = await finished(client, evaluation["job"])
            assert {"stage": "train", "state": "Unchanged"} in evaluated["stages"] or {
                "stage": "train",
                "state": "FromRunCache",
            } in evaluated["stages"]
            assert len(evaluated["results"]["blocks"]) == 57
            assert "warning" not in evaluated["results"]
            models = {row["model"]: row for row in (await call(client, "list-models"))["models"]}
            full = await download(client, f"{evaluation['job']}.adapter")
            slim = await download(client, f"{evaluation['job']}.adapter-slim")
            assert full == await download(client, f"{training['job']}.adapter")
            assert models[f"{evaluation['job']}.adapter-slim"]["bytes"] == len(slim)
            assert 0 < len(load(slim)) < len(load(full))
            jobs = (await call(client, "list-training-jobs"))["jobs"]
            assert {job["job"] for job in jobs} == {
                training["job"],
                waiting["job"],
                evaluation["job"],
            }

    anyio.run(round_trip)
    wanted = {"flow_runs": {"name": {"any_": ["first"]}}}
    runs = httpx2.post(f"{served.prefect}/api/flow_runs/filter", json=wanted).json()
    assert [run["state"]["type"] for run in runs] == ["COMPLETED"]
    assert git(served.source, "status", "--porcelain") == ""
    assert httpx2.post(served.door, json={}).status_code == 401
