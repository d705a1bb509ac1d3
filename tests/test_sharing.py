"""Results that are shared: one machine pushes, another pulls and has nothing left to run."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.repositories import git
from tests.small_run import reproduce, run, stages_run

pytestmark = pytest.mark.slow

BUCKET = "blocklens"


def dvc(folder: Path, *arguments: str) -> str:
    """Return what a DVC command said; its failure is a failure of the test."""
    done = run(folder, "dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def outputs(folder: Path) -> dict[str, bytes]:
    """Return all files of the stages' folders."""
    inputs = {"demo", "nano-flux", "weights"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for stage in (folder / "data").iterdir()
        if stage.is_dir() and stage.name not in inputs
        for path in stage.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def committed(small_run: Path, tmp_path: Path) -> Path:
    """A finished run whose lock file and metrics are in git."""
    folder = shutil.copytree(small_run, tmp_path / "here", symlinks=True)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "run")
    return folder


@pytest.fixture
def s3_endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server on this machine, credentials for it in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield f"http://{host}:{port}"
    server.stop()


@dataclass(frozen=True)
class SshAccess:
    """How a server of this machine is reached: its port, and the private key that it knows."""

    port: int
    key: Path


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[SshAccess]:
    """An SSH server on this machine, run by this very user, that knows one key and offers SFTP."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    access = tmp_path / "ssh"
    access.mkdir(mode=0o700)
    key.write_private_key(str(access / "key"))
    (access / "key").chmod(0o600)
    key.write_public_key(str(access / "authorized_keys"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=str(access / "authorized_keys"),
            sftp_factory=True,
        )

    async def close() -> None:
        server.close()
        await server.wait_closed()

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(timeout=60)
    yield SshAccess(server.get_port(), access / "key")
    asyncio.run_coroutine_threadsafe(close(), loop).result(timeout=60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=60)
    loop.close()


@pytest.mark.parametrize("kind", ["folder", "s3", "ssh"])
def test_a_pulled_run_has_nothing_left_to_do(
    kind: str, committed: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """docs/sharing.md, three lines: `dvc push` here, `dvc pull` there, `dvc repro` runs nothing."""
    if kind == "folder":
        dvc(committed, "remote", "add", "--default", "team", str(tmp_path / "remote"))
    elif kind == "ssh":
        server: SshAccess = request.getfixturevalue("ssh_server")
        url = f"ssh://team@127.0.0.1:{server.port}{tmp_path}/remote"
        dvc(committed, "remote", "add", "--default", "team", url)
        keyfile = ("remote", "modify", "--local", "team", "keyfile", str(server.key))
        dvc(committed, *keyfile)
    else:
        endpoint = request.getfixturevalue("s3_endpoint")
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
        dvc(committed, "remote", "add", "--default", "team", f"s3://{BUCKET}/lora")
        dvc(committed, "remote", "modify", "team", "endpointurl", endpoint)
    git(committed, "commit", "--quiet", "--all", "--message", "remote")
    dvc(committed, "push", "--run-cache")
    there = tmp_path / "there"
    git(tmp_path, "clone", "--quiet", str(committed), str(there))
    assert not (there / "data/train/adapter.safetensors").exists()
    if kind == "ssh":
        assert str(server.key) not in (there / ".dvc/config").read_text(encoding="utf-8")
        refused = run(there, "dvc", "pull")
        assert refused.returncode != 0
        assert "Permission denied" in refused.stderr
        dvc(there, *keyfile)
    dvc(there, "pull", "--run-cache")
    assert stages_run(reproduce(there)) == []
    assert outputs(there) == outputs(committed)


def test_a_result_that_was_made_before_is_not_made_again(committed: Path) -> None:
    """The run cache: going back to earlier params brings the earlier files, and runs nothing."""
    first = outputs(committed)
    params = (committed / "params.yaml").read_text(encoding="utf-8")
    assert "colour_map: inferno" in params
    (committed / "params.yaml").write_text(params.replace("inferno", "viridis"), encoding="utf-8")
    assert stages_run(reproduce(committed)) == ["evaluate", "report"]
    assert outputs(committed) != first
    (committed / "params.yaml").write_text(params, encoding="utf-8")
    assert stages_run(reproduce(committed)) == []
    assert outputs(committed) == first


def test_garbage_collection_keeps_what_tags_and_branches_need(committed: Path) -> None:
    """`dvc gc --all-branches --all-tags` frees what no tag or branch names, and only that."""
    params = (committed / "params.yaml").read_text(encoding="utf-8")
    git(committed, "tag", "keep")
    kept = (committed / "data/evaluate/sheet.png").read_bytes()
    sheets = []
    for colours in ("viridis", "magma"):
        (committed / "params.yaml").write_text(params.replace("inferno", colours), encoding="utf-8")
        reproduce(committed)
        sheets.append((committed / "data/evaluate/sheet.png").read_bytes())
    git(committed, "add", "--all")
    git(committed, "commit", "--quiet", "--message", "magma")
    dvc(committed, "gc", "--all-branches", "--all-tags", "--force")
    cached = [
        path.read_bytes()
        for path in (committed / ".dvc/cache/files/md5").rglob("*")
        if path.is_file()
    ]
    assert kept in cached
    assert sheets[1] in cached
    assert sheets[0] not in cached
    git(committed, "checkout", "--quiet", "keep")
    dvc(committed, "checkout")
    assert (committed / "data/evaluate/sheet.png").read_bytes() == kept


def test_an_experiment_tries_a_change_and_the_table_shows_what_matters(committed: Path) -> None:
    """`dvc exp run -S` runs what the change touches; `dvc exp show` has params and metrics."""
    said = dvc(committed, "exp", "run", "--name", "magma", "-S", "evaluate.colour_map=magma")
    assert stages_run(said) == ["evaluate", "report"]
    (commit,) = [
        each for each in json.loads(dvc(committed, "exp", "show", "--json")) if each["experiments"]
    ]
    (experiment,) = commit["experiments"]
    shown = experiment["revs"][0]["data"]
    assert experiment["name"] == "magma"
    assert shown["params"]["params.yaml"]["data"]["evaluate"]["colour_map"] == "magma"
    assert "recovery" in shown["metrics"]["data/slim/metrics.json"]["data"]


def test_queued_experiments_run_one_after_the_other(committed: Path) -> None:
    """`dvc exp run --queue`, then `dvc queue start`: both are there at the end, by name."""
    for colours in ("viridis", "turbo"):
        change = f"evaluate.colour_map={colours}"
        dvc(committed, "exp", "run", "--queue", "--name", colours, "-S", change)
    dvc(committed, "exp", "run", "--run-all")
    listed = dvc(committed, "exp", "list", "--name-only").split()
    assert sorted(listed) == ["turbo", "viridis"]
