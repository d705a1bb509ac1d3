"""The report reads everything before it writes anything, and says all that is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stages.contracts.blocks import BlockId
from stages.contracts.errors import TableError
from stages.reporting.evidence import Evidence, Folders, read_evidence
from tests.reporting.example import example_folders


@pytest.fixture
def copy(example_data: Path, tmp_path: Path) -> Folders:
    """A copy of the example that a test may break."""
    shutil.copytree(example_data, tmp_path / "data")
    return Folders(**example_folders(tmp_path / "data"))


def test_absent_blocks_are_there_without_numbers(evidence: Evidence) -> None:
    """A block that the LoRA does not have is not one with share 0."""
    names = [str(result.block) for result in evidence.blocks]
    assert names == [f"double.{i}" for i in range(3)] + [f"single.{i}" for i in range(4)] + ["base"]
    absent = {str(r.block): r for r in evidence.blocks if not r.present}
    assert set(absent) == {"single.1", "base"}
    assert absent["base"].number("share") is None
    assert not absent["base"].kept
    assert len(evidence.present) == 6


def test_ranking_is_by_share(evidence: Evidence) -> None:
    """Largest first, whatever the order in the table."""
    shares = [result.numbers["share"] for result in evidence.ranked]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)


def test_kept_blocks_are_the_first_of_the_curve(evidence: Evidence) -> None:
    """The chosen set is a prefix of the chooser's order, as long as metrics say."""
    kept = [result.block for result in evidence.blocks if result.kept]
    assert len(kept) == evidence.metrics["slim"]["blocks_kept"] == 2
    assert evidence.ranked[0].block in kept
    assert all(isinstance(block, BlockId) for block in kept)


def test_everything_missing_is_named_in_one_message(copy: Folders) -> None:
    """Nobody wants to run the stage once per missing file."""
    (copy.evaluated / "blocks.csv").unlink()
    (copy.slimmed / "metrics.json").unlink()
    copy.adapter.unlink()
    (copy.trained / "metrics.json").write_text(json.dumps({"improvement": 0.1}))
    (copy.manifest).write_text("{")
    with pytest.raises(TableError) as caught:
        read_evidence(copy)
    message = str(caught.value)
    for part in (
        "blocks.csv",
        "slim/metrics.json",
        "adapter.safetensors",
        "manifest.json",
        "validation_loss_base",
    ):
        assert part in message
