"""The picture in docs/serving.md: a run that a schedule started, as Prefect's page shows it.

    python -m benchmarks.serving --out FOLDER [--picture docs/serving.jpg]

Serves a small project with an interval of half a minute instead of the cron of `nightly`, waits
until a run of that schedule is completed, opens its page in Chromium and keeps what it shows.
FOLDER may be that of benchmarks/faults.py, whose small project is then not made again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import yaml
from playwright.sync_api import Page, expect

from benchmarks.fault_project import Undisturbed, undisturbed_run, wait_for
from benchmarks.fault_serving import Served, go_back
from benchmarks.faults import LIMIT_S
from tests.browser import open_page

INTERVAL_S: Final = 30.0
STAGE: Final = "evaluate"
"""The first one that the run has still to do: the others show what they look like unchanged."""
_WAIT_MS: Final = 60_000


def main() -> None:
    """Serve, wait, and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of projects")
    parser.add_argument("--picture", type=Path, default=Path("docs/serving.jpg"))
    options = parser.parse_args()
    out = options.out.resolve()
    undisturbed = undisturbed_run(out / "small")
    served = Served(_scheduled(undisturbed, out / "at" / "schedule"), out / "at" / "schedule.log")
    try:
        if not wait_for(lambda: served.scheduled_runs("COMPLETED"), LIMIT_S, lambda: True):
            sys.exit(served.log.read_text())
        run = served.scheduled_runs("COMPLETED")[0]
        address = served.api.removesuffix("/api")
        with open_page(f"{address}/runs/flow-run/{run['id']}", []) as page:
            expect_run(page, run)
            page.wait_for_timeout(3000)  # the graph moves into place
            page.screenshot(path=options.picture, type="jpeg", quality=70)
    finally:
        served.stop()
    sys.stdout.write(f"{run['name']}: {options.picture}, {options.picture.stat().st_size} bytes\n")


def expect_run(page: Page, run: dict[str, Any]) -> None:
    """Wait until the page of a run shows its name and its state.

    Raises:
        AssertionError: it does not.
    """
    body = page.locator("body")
    expect(body).to_contain_text(run["name"], timeout=_WAIT_MS)
    expect(body).to_contain_text(run["state"]["name"], timeout=_WAIT_MS)


def _scheduled(undisturbed: Undisturbed, folder: Path) -> Path:
    """Return a copy of the small project, as it was before a stage, whose nightly runs often."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(undisturbed.project, folder, symlinks=True)
    go_back(folder, undisturbed.before[STAGE], STAGE)
    document = yaml.safe_load((folder / "prefect.yaml").read_text(encoding="utf-8"))
    for deployment in document["deployments"]:
        if deployment["name"] == "nightly":
            deployment["schedules"] = [{"interval": INTERVAL_S, "active": True}]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
