"""One small example and its report, shared by the tests of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.reporting.evidence import Evidence, Folders, read_evidence
from tests.reporting.example import Example, example_folders, write_example

SMALL = Example(double_blocks=3, single_blocks=4, absent=("single.1",), side_px=32)


@pytest.fixture(scope="session")
def example_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data/ folder with everything that the report reads."""
    data = tmp_path_factory.mktemp("example") / "data"
    write_example(data, SMALL)
    return data


@pytest.fixture(scope="session")
def folders(example_data: Path) -> Folders:
    """Where the example's files lie."""
    return Folders(**example_folders(example_data))


@pytest.fixture(scope="session")
def evidence(folders: Folders) -> Evidence:
    """The example, read."""
    return read_evidence(folders)
