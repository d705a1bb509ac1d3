"""How far a stage is can be seen in Prefect while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.progress import ProgressBoard, artifact_key
from tests.flows.test_pipeline import run_flow

SAYS = """\
echo 'alpha: 3 of 12, 90 s left, loss 0.25'
echo 'alpha: not 3 of 12'
echo 'alpha: checks: 1 of 4, 9 s left'
echo 'alpha: 9 of 12, 30 s left, loss 0.125'
"""


def progress(stage: str) -> dict[str, Any]:
    """Return a stage's progress artifacts: key -> (percent, description).

    Other tests' runs have left theirs on the same server.
    """
    wanted = ArtifactFilter(key=ArtifactFilterKey(like_=artifact_key(stage, stage)))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted)
    assert {each.type for each in found} == {"progress"}
    return {str(each.key): (each.data, each.description) for each in found}


@pytest.mark.usefixtures("prefect_server")
def test_lines_of_a_stage_become_progress(finished_project: Path) -> None:
    """One artifact per loop, updated in place; what only looks like progress is none."""
    (finished_project / "source.txt").write_text("second\n")
    (finished_project / "hook.sh").write_text(f'if [ "$2" = alpha.txt ]; then\n{SAYS}fi\n')
    state = run_flow(finished_project, ["alpha"])
    assert state.is_completed(), state.message
    assert progress("alpha") == {
        "progress-alpha": (75.0, "9 of 12, 30 s left, loss 0.125"),
        "progress-alpha-checks": (25.0, "1 of 4, 9 s left"),
    }


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow")
def test_a_lost_server_costs_no_training(caplog: pytest.LogCaptureFixture) -> None:
    """The line is in the log all the same."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        ProgressBoard("train").follow("train: 1 of 2, 3 s left")
    assert "train: progress is not shown" in caplog.text


def test_keys_are_as_prefect_wants_them() -> None:
    """Lower-case letters, digits and dashes, the stage named once."""
    assert artifact_key("slim", "slim: blocks in pairs") == "progress-slim-blocks-in-pairs"
    assert artifact_key("encode", "Class_pictures") == "progress-encode-class-pictures"
