"""Jobs are runs in Prefect: asked for, listed, described and stopped through its API."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

# isort: split
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, LogCreate
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed
from prefect.types._datetime import now

from flows.mcp_server.tools import Workspace
from flows.pipeline import pipeline
from tests.flows.mcp_server.conftest import call, opened_house, picture, refusal

CONTENT = b"what a job has trained"
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    """Prefect's own client, to look behind the door."""
    with get_client(sync_client=True) as connected:
        yield connected


@pytest.fixture
def working(client: SyncPrefectClient, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace with a dataset and a config, and a server with the deployment but no worker."""
    flow = client.create_flow(pipeline)
    client.create_deployment(flow, name="on-demand")
    with opened_house(tmp_path) as workspace:
        for split in ("train", "validation"):
            files = [picture(f"{split}.png")]
            call(workspace, "upload-dataset", dataset="robot", files=files, split=split)
        made = {"config": "quick", "preset": "nano-flux", "overrides": {"train.rank": 3}}
        call(workspace, "create-training-config", **made)
        yield dataclasses.replace(workspace, prefect_url=PREFECT_API_URL.value())


def leave(client: SyncPrefectClient, job: str, key: str, data: object) -> None:
    """Leave an artifact as the flow of a job does."""
    text = data if isinstance(data, str) else json.dumps(data)
    client.create_artifact(ArtifactCreate(flow_run_id=job, key=key, type="table", data=text))


def finish(
    client: SyncPrefectClient, workspace: Workspace, job: str, path: str, content: bytes
) -> None:
    """End a job as its flow does: a file in the cache, its name in Prefect."""
    md5 = hashlib.md5(content).hexdigest()
    cached = workspace.cache / "files/md5" / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(content)
    leave(client, job, "files", [{"stage": "x", "path": path, "md5": md5, "bytes": len(content)}])
    client.set_flow_run_state(job, Completed(), force=True)


def test_a_training_is_a_run_of_the_deployment(
    working: Workspace, client: SyncPrefectClient
) -> None:
    """Prefect has the targets and every value; the door shows it, stops it, and says so once."""
    asked = {"dataset": "robot", "config": "quick", "name": "my-robot"}
    started = call(working, "start-training", **asked)
    assert (started["name"], started["ended"]) == ("my-robot", False)
    run = client.read_flow_run(started["job"])
    assert run.parameters["targets"] == ["train"]
    values = run.parameters["overrides"]
    assert values["train.rank"] == 3
    assert values["prepare.images"] == str(working.inbox.root / "datasets/robot/train")
    assert values["prepare.validation_images"].endswith("datasets/robot/validation")
    assert set(run.tags) == {"mcp", "dataset:robot", "config:quick"}
    listed = call(working, "list-training-jobs", limit=1)["jobs"]
    assert [job["job"] for job in listed] == [started["job"]]
    status = call(working, "get-training-status", job=started["job"])
    assert (status["stages"], status["results"]) == ([], {})
    assert call(working, "stop-training", job=started["job"])["state"] == "Cancelled"
    assert "ended already" in refusal(working, "stop-training", job=started["job"])
    assert "is no job" in refusal(working, "get-training-status", job=str(uuid4()))


def test_a_run_of_another_deployment_is_none_of_the_doors(
    working: Workspace, client: SyncPrefectClient
) -> None:
    """Neither state nor logs of other runs, and they cannot be stopped from here."""
    other = str(client.create_flow_run(pipeline, name="another").id)
    for tool in ("get-training-status", "get-training-logs", "stop-training"):
        assert "is no job" in refusal(working, tool, job=other)
    assert not client.read_flow_run(other).state.is_final()  # type: ignore[union-attr]


def test_logs_come_in_pieces(working: Workspace, client: SyncPrefectClient) -> None:
    """Each line once, in order."""
    job = call(working, "start-training", dataset="robot", config="quick")["job"]
    lines = [f"line {number}" for number in range(5)]
    logs = [
        LogCreate(name="flow", level=20, message=line, timestamp=now("UTC"), flow_run_id=job)
        for line in lines
    ]
    client.request("POST", "/logs/", json=[log.model_dump(mode="json") for log in logs])
    first = call(working, "get-training-logs", job=job, limit=3)
    rest = call(working, "get-training-logs", job=job, offset=first["next_offset"])
    assert first["lines"] + rest["lines"] == lines
    assert call(working, "get-training-logs", job=job, offset=5)["lines"] == []


def test_what_a_job_made_is_found_again(working: Workspace, client: SyncPrefectClient) -> None:
    """The LoRA of a job is listed, fetched and evaluated with the job's own params."""
    job = call(working, "start-training", dataset="robot", config="quick")["job"]
    model = f"{job}.adapter"
    assert "has made no such LoRA" in refusal(working, "evaluate-blocks", model=model)
    finish(client, working, job, "data/train/adapter.safetensors", CONTENT)
    listed = {row["model"]: row for row in call(working, "list-models")["models"]}
    assert listed[model]["bytes"] == len(CONTENT)
    piece = call(working, "download-model", model=model)
    assert piece["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    evaluation = call(working, "evaluate-blocks", model=model)
    runs = [client.read_flow_run(each) for each in (job, evaluation["job"])]
    assert runs[0].parameters["overrides"] == runs[1].parameters["overrides"]
    assert runs[1].parameters["targets"] == ["report"]
    assert f"md5:{MD5}" in evaluation["tags"]
    finish(client, working, evaluation["job"], "data/train/adapter.safetensors", b"another")
    leave(client, evaluation["job"], "blocks", [{"block": "double.0", "share": "0.5"}])
    results = call(working, "get-training-status", job=evaluation["job"])["results"]
    assert "was trained again" in results["warning"]
    assert results["blocks"][0]["block"] == "double.0"
    slim = f"{job}.adapter-slim"
    assert "has made no such LoRA" in refusal(working, "download-model", model=slim)
    assert "is not what the job has trained" in refusal(working, "evaluate-blocks", model=slim)
    for path in working.cache.rglob("*"):
        if path.is_file():
            path.unlink()
    assert "not in DVC's cache any more" in refusal(working, "download-model", model=model)


def test_what_jobs_made_is_found_among_all_that_they_left(
    working: Workspace, client: SyncPrefectClient
) -> None:
    """Prefect answers with 200 artifacts, and a job leaves more than its files."""
    job = call(working, "start-training", dataset="robot", config="quick")["job"]
    for _ in range(201):
        leave(client, job, "stages", [])
    finish(client, working, job, "data/train/adapter.safetensors", CONTENT)
    for _ in range(201):
        leave(client, job, "stages", [])
    listed = [row["model"] for row in call(working, "list-models")["models"]]
    assert f"{job}.adapter" in listed
    assert call(working, "get-training-status", job=job)["results"]["files"]


def test_captions_are_part_of_the_status(working: Workspace, client: SyncPrefectClient) -> None:
    """The job that ends with captions has them in its status."""
    job = call(working, "generate-captions", dataset="robot", config="quick")["job"]
    assert client.read_flow_run(job).parameters["targets"] == ["caption"]
    finish(client, working, job, "data/caption/captions.csv", b"image,caption\na,tok a robot\n")
    results = call(working, "get-training-status", job=job)["results"]
    assert results["captions"] == [{"image": "a", "caption": "tok a robot"}]


def test_a_lora_from_elsewhere_is_evaluated_by_name(
    working: Workspace, client: SyncPrefectClient
) -> None:
    """The run gets the path of the upload, and no training takes part."""
    sent = working.inbox.root / "adapters/mine.safetensors"
    sent.write_bytes(b"checked when it came")
    started: dict[str, Any] = call(working, "evaluate-blocks", model="mine", config="quick")
    values = client.read_flow_run(started["job"]).parameters["overrides"]
    assert values["split.adapter"] == str(sent)
    assert values["report.origin"] == "data/elsewhere"


def test_a_server_without_the_deployment_is_named(
    client: SyncPrefectClient, workspace: Workspace
) -> None:
    """`prefect server start` alone has nothing to run."""
    for deployment in client.read_deployments():
        client.delete_deployment(deployment.id)
    bare = dataclasses.replace(workspace, prefect_url=PREFECT_API_URL.value())
    assert "`make serve` registers it" in refusal(bare, "list-training-jobs")
