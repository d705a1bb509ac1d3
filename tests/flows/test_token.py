"""A Prefect run that fails for want of a download leaves no token in anything that it writes."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.hub_server import REVISION, hub
from tests.flows.conftest import run_dvc
from tests.stages.fetching import ROOT, files_holding, write_params

PIPELINE = """\
stages:
  fetch:
    cmd: python -m stages.fetch --out data/fetch
    deps: [params.yaml]
    outs: [data/fetch/manifest.json]
"""


@pytest.mark.parametrize(
    ("login", "repository", "expected"),
    [
        ("HF_TOKEN", "tests/gated", "the licence is not accepted for the account of this token"),
        ("saved login", "tests/altered", "arrived broken twice"),
    ],
)
def test_flow_leaves_no_token_behind(
    nano_flux: Path, tmp_path: Path, login: str, repository: str, expected: str
) -> None:
    """Prefect's database and logs, DVC's files, the Hub's cache and what is printed: every byte."""
    canary = f"hf_{secrets.token_hex(20)}"
    written = tmp_path / "written"
    project, home = written / "project", written / "home"
    (written / "tmp").mkdir(parents=True)
    home.mkdir()
    subprocess.run(["git", "init", "--quiet", project], check=True)
    run_dvc(project, "init", "--quiet")
    (project / "dvc.yaml").write_text(PIPELINE)
    write_params(project / "params.yaml", repository=repository, revision=REVISION)
    if login == "saved login":
        (home / "token").write_text(canary)
    ignored = shutil.ignore_patterns("captioner")
    source = shutil.copytree(nano_flux, tmp_path / "source", ignore=ignored)
    environment = {name: text for name, text in os.environ.items() if name != "PREFECT_API_URL"}
    with hub(source, good_token=canary) as (address, served):
        done = subprocess.run(
            [sys.executable, "-m", "flows.pipeline"],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
            env={
                **environment,
                "PYTHONPATH": str(ROOT),
                "PREFECT_HOME": str(written / "prefect"),
                "TMPDIR": str(written / "tmp"),
                "HF_HOME": str(home),
                "HF_ENDPOINT": address,
                "HF_HUB_OFFLINE": "0",
                "HF_TOKEN": canary if login == "HF_TOKEN" else "",
            },
        )
    (home / "token").unlink(missing_ok=True)
    (written / "stdout").write_text(done.stdout)
    (written / "stderr").write_text(done.stderr)
    assert done.returncode == 1
    assert canary in served.tokens
    database = written / "prefect" / "prefect.db"
    assert expected.encode() in b"".join(
        path.read_bytes()
        for path in (database, database.with_name("prefect.db-wal"))
        if path.exists()
    ), "the failure must have reached the database"
    assert expected in done.stderr
    assert (project / ".dvc" / "tmp").is_dir()
    assert files_holding(written, canary) == []
