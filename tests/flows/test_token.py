"""A Prefect run that fails for want of a download leaves no token in anything that it writes."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

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
RUNS = {
    "HF_TOKEN": ("tests/gated", "the licence is not accepted for the account of this token"),
    "saved login": ("tests/altered", "arrived broken twice"),
}


def test_flows_leave_no_token_behind(nano_flux: Path, tmp_path: Path) -> None:
    """Prefect's database and logs, DVC's files, the Hub's cache and what is printed: every byte."""
    canary = f"hf_{secrets.token_hex(20)}"
    written = tmp_path / "written"
    project, home = written / "project", written / "home"
    for folder in (written / "tmp", home):
        folder.mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", project], check=True)
    run_dvc(project, "init", "--quiet")
    (project / "dvc.yaml").write_text(PIPELINE)
    ignored = shutil.ignore_patterns("captioner")
    source = shutil.copytree(nano_flux, tmp_path / "source", ignore=ignored)
    for login, (repository, expected) in RUNS.items():
        write_params(project / "params.yaml", repository=repository, revision=REVISION)
        if login == "saved login":
            (home / "token").write_text(canary)
        with hub(source, good_token=canary) as (address, served):
            done = run_flow(
                written,
                HF_ENDPOINT=address,
                HF_TOKEN=canary if login == "HF_TOKEN" else "",
            )
        (home / "token").unlink(missing_ok=True)
        (written / f"printed-{login}").write_text(done.stdout + done.stderr)
        assert done.returncode == 1
        assert canary in served.tokens, "the token must have been used"
        assert expected in done.stderr
        database = sorted((written / "prefect").glob("prefect.db*"))
        assert expected.encode() in b"".join(path.read_bytes() for path in database)
    assert (project / ".dvc" / "tmp").is_dir()
    assert files_holding(written, canary) == []


def run_flow(written: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the flow in `written`/project; all that it keeps elsewhere is in `written` too."""
    inherited = {name: text for name, text in os.environ.items() if name != "PREFECT_API_URL"}
    return subprocess.run(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=written / "project",
        capture_output=True,
        text=True,
        check=False,
        env={
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(written / "prefect"),
            "TMPDIR": str(written / "tmp"),
            "HF_HOME": str(written / "home"),
            "HF_HUB_OFFLINE": "0",
            **environment,
        },
    )
