"""docs/weights.md knows every error of a download, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from stages.contracts.params import FetchParams, SingleFilesParams, load_params
from tests.families.test_hub import MESSAGES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/weights.md").read_text(encoding="utf-8")
QUOTED = [
    quoted
    for row in re.findall(r"^\| (`.*?) \|", PAGE.split("## What can go wrong")[1], flags=re.M)
    for quoted in re.findall(r"`([^`]+)`", row)
]
SOURCE = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "stages/families").glob("*.py"))
)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_failure_of_a_download_is_explained(name: str) -> None:
    """A new message needs its line on the page."""
    assert [quoted for quoted in QUOTED if quoted in MESSAGES[name]]


@pytest.mark.parametrize("quoted", QUOTED)
def test_every_explained_message_exists(quoted: str) -> None:
    """A message that was reworded takes the page along."""
    assert quoted in SOURCE


def test_table_of_errors_is_found() -> None:
    """The loops above run over something."""
    assert len(QUOTED) == 33


def test_examples_are_valid_params() -> None:
    """Someone copies them."""
    hub, single = (
        yaml.safe_load(block)["fetch"] for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    )
    preset = load_params(ROOT / "presets/flux1-dev-24gb.yaml").fetch
    assert FetchParams(**hub) == preset
    files = SingleFilesParams(**single.pop("single_files"))
    assert FetchParams(**single, single_files=files).single_files == files
    assert preset.revision is not None
    assert PAGE.count(preset.revision) == 2
