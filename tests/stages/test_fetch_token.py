"""The token is in no file and in no message of a failing run, however it fails."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.hub_server import REVISION, hub
from tests.stages.fetching import ROOT, files_holding, start_fetch, write_params

NOBODY = "http://127.0.0.1:9"
LOUD = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
FAILURES = {
    "gated": "the licence is not accepted for the account of this token",
    "forbidden": "access forbidden (403)",
    "absent": "not found",
    "cut": None,  # it is taken up again, and succeeds
    "altered": "arrived broken twice",
    "huge": "GB are free",
    "branch": f"it stands for {REVISION} now",
    "revision": f"has no revision {'f' * 40}",
    "nobody": "the Hub does not answer (ConnectError)",
    "refused": "the Hub refuses the token (wrong, expired or revoked)",
    "torn": "holds characters that no token has",
}
"""Name of a run -> what it says."""

TRACE = """
import sys, traceback
from pathlib import Path
from stages.contracts.params import load_params
from stages.fetch import fetch
try:
    fetch(load_params(Path(sys.argv[1])).fetch, out=Path(sys.argv[2]))
except Exception as error:
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    print("".join(whole.format()))
    while error is not None:
        print(repr(error), *map(repr, error.args), vars(error))
        error = error.__cause__ or error.__context__
"""


@pytest.fixture(scope="module")
def canary() -> str:
    """A token that stands nowhere else."""
    return f"hf_{secrets.token_hex(20)}"


@pytest.fixture(scope="module")
def source(nano_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Hub serves."""
    folder = tmp_path_factory.mktemp("served") / "model"
    return Path(shutil.copytree(nano_flux, folder, ignore=shutil.ignore_patterns("captioner")))


@pytest.fixture(scope="module", params=["HF_TOKEN", "saved login"])
def runs(
    request: pytest.FixtureRequest,
    canary: str,
    source: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder with all that each of the runs wrote, its output in `stdout` and `stderr`."""
    root = tmp_path_factory.mktemp("runs")
    with hub(source, good_token=canary) as (address, served):
        children = {}
        for name in FAILURES:
            folder = root / name
            (folder / "tmp").mkdir(parents=True)
            revision = {"branch": "main", "revision": "f" * 40}.get(name, REVISION)
            served_as = {"branch": "whole", "revision": "whole", "nobody": "gated"}.get(name, name)
            served_as = {"refused": "gated", "torn": "gated"}.get(served_as, served_as)
            token = {"refused": f"hf_{canary[:3:-1]}", "torn": f"{canary}\x07"}.get(name, canary)
            environment = {
                **LOUD,
                "HF_ENDPOINT": NOBODY if name == "nobody" else address,
                "TMPDIR": str(folder / "tmp"),
                **login(request.param, folder / "home", token),
            }
            params = write_params(
                folder / "params.yaml", repository=f"tests/{served_as}", revision=revision
            )
            children[name] = start_fetch(folder, params, **environment)
        for name, child in children.items():
            stdout, stderr = child.communicate(timeout=300)
            (root / name / "stdout").write_text(stdout)
            (root / name / "stderr").write_text(stderr)
            (root / name / "home" / "token").unlink(missing_ok=True)
        assert canary in served.tokens, "the token must have been used"
    return root


def login(kind: str, home: Path, token: str) -> dict[str, str]:
    """Return the environment of a user who is logged in, and make what lies on the disk."""
    if kind == "HF_TOKEN":
        return {"HF_TOKEN": token}
    home.mkdir()
    (home / "token").write_text(token)
    return {"HF_TOKEN": ""}


def test_runs_fail_as_they_should(runs: Path) -> None:
    """Otherwise nothing would have been at stake."""
    for name, expected in FAILURES.items():
        stderr = (runs / name / "stderr").read_text()
        assert (expected or "fetch: 19 double and 38 single blocks") in stderr, name


def test_no_file_holds_the_token(runs: Path, canary: str) -> None:
    """Outputs, caches, logs and what was printed: every byte is looked at."""
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert len(files) > 3 * len(FAILURES)
    assert files_holding(runs, canary) == []
    assert files_holding(runs, canary[:3:-1]) == []


def test_search_finds_a_token(tmp_path: Path, canary: str) -> None:
    """The search itself can fail: a token inside a binary file, and half of one."""
    (tmp_path / "a").write_bytes(b"\0\xff" + canary.encode() + b"\0")
    (tmp_path / "b").write_text(canary[: len(canary) // 2])
    (tmp_path / "c").write_text("hf_")
    assert files_holding(tmp_path, canary) == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("repository", ["gated", "absent", "altered", "huge"])
def test_traceback_holds_no_token(
    source: Path, tmp_path: Path, canary: str, repository: str
) -> None:
    """Not even one with the local variables of every frame, of the error and of its causes."""
    params = write_params(
        tmp_path / "params.yaml", repository=f"tests/{repository}", revision=REVISION
    )
    with hub(source, good_token=canary) as (address, served):
        done = subprocess.run(
            [sys.executable, "-c", TRACE, params, tmp_path / "out"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                **LOUD,
                "HF_ENDPOINT": address,
                "HF_HOME": str(tmp_path / "home"),
                "HF_HUB_OFFLINE": "0",
                "HF_TOKEN": canary,
            },
        )
    assert canary in served.tokens
    assert "Traceback" in done.stdout
    assert "pin = " in done.stdout
    half = len(canary) // 2
    for part in (canary[:half], canary[half:]):
        assert part not in done.stdout + done.stderr
