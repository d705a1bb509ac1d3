"""What a flow run leaves in Prefect: states, files, metrics, blocks, contact sheet, report link."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.graph import GraphError, run_dvc
from flows.lock_file import locked_outputs

CONTACT_SHEET: Final = Path("data/evaluate/sheet.png")
REPORT: Final = Path("data/report/index.html")
BLOCKS: Final = Path("data/evaluate/blocks.csv")
BLOCK_COLUMNS: Final = (
    "block",
    "share",
    "share_low",
    "share_high",
    "only_recovery",
    "without_recovery",
    "bytes",
)
IMAGE_LIMIT_BYTES: Final = 150_000
"""A data: URI is a third longer than its bytes; 200 kB are the most we put into the database."""
WIDEST_PX: Final = 1600
REPORT_URL: Final = "BLOCKLENS_REPORT_URL"
"""Names where the report of the last run is served, as docker/compose.yaml does."""
_JPEG_QUALITY = 80
_log = logging.getLogger(__name__)


def publish_states(rows: Sequence[Mapping[str, Any]]) -> None:
    """Leave the table of stages: name, state, seconds."""
    create_table_artifact(
        table=[dict(row) for row in rows], key="stages", description="What each stage did"
    )


def publish_files(root: Path, stages: Collection[str]) -> None:
    """Leave the table of the single files that these stages have made: path, MD5, bytes.

    A later run in the same checkout writes others in their place. Those that DVC caches are found
    under their MD5 then.
    """
    if rows := made_files(root, stages):
        create_table_artifact(table=rows, key="files", description="Files of this run")


def made_files(root: Path, stages: Collection[str]) -> list[dict[str, Any]]:
    """Return path, MD5 and size of the stages' outputs that are files, as dvc.lock has them."""
    outputs = locked_outputs(root)
    return [
        {"stage": stage, "path": out["path"], "md5": out["md5"], "bytes": out["size"]}
        for stage in sorted(stages)
        for out in outputs.get(stage, [])
        if not out["md5"].endswith(".dir")
    ]


def block_rows(root: Path) -> list[dict[str, str]]:
    """Return what the evaluation says of each block, the largest share first."""
    with (root / BLOCKS).open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["share"]))
    return [{column: row[column] for column in BLOCK_COLUMNS} for row in rows]


def publish_results(root: Path, stages: Collection[str]) -> None:
    """Leave metrics, blocks, contact sheet and report link, as far as the pipeline has them.

    The blocks are left by the run that has visited `evaluate` alone.
    """
    if "evaluate" in stages and (root / BLOCKS).is_file():
        create_table_artifact(table=block_rows(root), key="blocks", description="Blocks")
    if metrics := metrics_markdown(root):
        create_markdown_artifact(markdown=metrics, key="metrics", description="Metrics")
    if (root / CONTACT_SHEET).is_file():
        create_image_artifact(
            image_url=image_uri(root / CONTACT_SHEET),
            key="contact-sheet",
            description="All blocks on one sheet",
        )
    if (root / REPORT).is_file():
        _publish_report((root / REPORT).resolve())


def _publish_report(path: Path) -> None:
    """Leave where the report is: its address where it is served, else its path."""
    if address := os.environ.get(REPORT_URL):
        create_link_artifact(link=address, link_text="Report", key="report")
    else:
        publish_place(path, key="report", description="Report")


def publish_place(path: Path, *, key: str, description: str) -> None:
    """Leave where a file is, as text to be copied: a page that came over HTTP may open no file."""
    create_markdown_artifact(markdown=f"`{path}`", key=key, description=description)


def metrics_markdown(root: Path) -> str:
    """Return the metrics as a Markdown table, and their change since the last commit.

    Empty without metrics. The change is left out, with the reason in the log, where there is no
    commit to compare with.
    """
    with ThreadPoolExecutor() as pool:  # each is a process that takes a second
        comparison = pool.submit(_metrics_difference, root)
        shown = json.loads(run_dvc(root, "metrics", "show", "--json"))
        difference = comparison.result()
    files = shown.get("", {}).get("data", {})
    rows = [
        f"| {path} | {name} | {value} |"
        for path, content in sorted(files.items())
        for name, value in _flat(content.get("data", {}))
    ]
    if not rows:
        return ""
    table = ["## Metrics", "", "| File | Metric | Value |", "|---|---|---|", *rows]
    if difference:
        table += ["", "## Change since the last commit", "", difference]
    return "\n".join(table)


def image_uri(path: Path) -> str:
    """Return a picture as a data: URI of a JPEG, made smaller until it fits into the limit."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    width_px = min(picture.width, WIDEST_PX)
    while True:
        height_px = max(1, round(picture.height * width_px / picture.width))
        smaller = picture.resize((width_px, height_px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        smaller.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        if buffer.tell() <= IMAGE_LIMIT_BYTES:
            return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        width_px = max(1, width_px * 3 // 4)


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in sorted(content.items()):
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return found


def _metrics_difference(root: Path) -> str:
    if not _has_commit(root):
        _log.info("no commit yet: metrics are shown without a comparison")
        return ""
    try:
        return run_dvc(root, "metrics", "diff", "--md", "HEAD").strip()
    except GraphError as error:
        _log.warning("metrics are shown without a comparison: %s", error)
        return ""


def _has_commit(root: Path) -> bool:
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:  # no git on this machine
        return False
