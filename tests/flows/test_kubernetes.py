"""The base job template of the Kubernetes work pool, by Prefect's own code for such pools."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration
from pydantic import ValidationError

from flows.serve import HEARTBEAT_S, WORKER_GRACE_S
from tests.containers.dockerfile import read_dockerfile

ROOT = Path(__file__).parents[2]
PATH = ROOT / "deploy" / "kubernetes" / "base-job-template.json"
DIGEST = "registry.example/blocklens@sha256:" + "0" * 64


def image_says(word: str) -> str:
    """Return the value of an instruction that the Dockerfile's targets share."""
    _, stages = read_dockerfile(ROOT / "docker" / "Dockerfile")
    (instruction,) = stages["runtime"].of(word)
    return instruction.rest


@pytest.fixture
def shipped() -> dict[str, Any]:
    """The template that we ship."""
    content: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return content


def configured(template: dict[str, Any], **values: object) -> KubernetesWorkerJobConfiguration:
    """What a worker of such a pool makes of the template for a run with these variables."""
    configuration: KubernetesWorkerJobConfiguration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(template, values)
    )
    return configuration


def test_prefect_takes_it_for_a_pool(shipped: dict[str, Any]) -> None:
    """Accepted as a pool's template; one with an undeclared variable would not be."""
    assert WorkPoolCreate(name="gpus", type="kubernetes", base_job_template=shipped)
    del shipped["variables"]["properties"]["gpus"]
    with pytest.raises(ValidationError, match="gpus"):
        WorkPoolCreate(name="gpus", type="kubernetes", base_job_template=shipped)


def test_every_variable_is_used_and_prefects_own_keys_are_there(shipped: dict[str, Any]) -> None:
    """A variable without a place in the job would be a setting without effect."""
    text = json.dumps(shipped["job_configuration"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", text))
    assert used == set(shipped["variables"]["properties"])
    theirs = KubernetesWorker.get_default_base_job_template()
    assert set(shipped["job_configuration"]) == set(theirs["job_configuration"])


@pytest.mark.usefixtures("prefect_server")
def test_a_run_gets_gpus_and_volumes(shipped: dict[str, Any]) -> None:
    """Numbers stay numbers, claims are mounted, and nothing runs as root."""
    made = configured(shipped, image=DIGEST, gpus=4, data_claim="robots")
    pod = made.job_manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == DIGEST
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["nvidia.com/gpu"] == 4
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {"data": "robots", "cache": "blocklens-cache"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"data": "/data", "cache": "/cache", "shared-memory": "/dev/shm"}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(image_says("USER").split(":")[0])
    assert made.env["BLOCKLENS_DEVICE"] == "cuda"
    assert made.env["BLOCKLENS_SOURCE"] == mounts["data"]
    assert Path(made.env["BLOCKLENS_CLONE"]).parent == Path(mounts["cache"])
    assert made.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_S)
    assert made.pod_watch_timeout_seconds == 1800


def test_a_pod_starts_where_the_image_does(shipped: dict[str, Any]) -> None:
    """A working folder below a volume is made in it, and is no checkout to the entry point."""
    (container,) = shipped["job_configuration"]["job_manifest"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["workingDir"] == image_says("WORKDIR")
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert not [path for path in mounted if container["workingDir"].startswith(f"{path}/")]
    assert {"/data", "/cache"} <= set(mounted)


def test_a_training_has_time_to_save_its_state(shipped: dict[str, Any]) -> None:
    """The pod outlives a stage that saves, and the flow that waits for it."""
    assert shipped["variables"]["properties"]["stop_within_s"]["default"] > WORKER_GRACE_S


def test_a_deployment_gets_into_the_pool(prefect_server: None, shipped: dict[str, Any]) -> None:
    """By the command of docs/several-machines.md; its runs use the pod's own folders."""
    page = (ROOT / "docs/several-machines.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^(prefect .*deploy .+(?:\n {4}.+)*)$", page, re.MULTILINE)
    command = re.sub(r"\\\n\s+", "", command).replace("REGISTRY/blocklens@sha256:...", DIGEST)
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name="gpus", type="kubernetes", base_job_template=shipped)
        client.create_work_pool(pool)
        environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(
            command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        deployment = client.read_deployment_by_name("pipeline/on-demand")
        assert deployment.work_pool_name == "gpus"
        assert deployment.job_variables == {"image": DIGEST}
        assert deployment.pull_steps == [{"flows.worker_clone.update_own_clone": {}}]
        client.delete_deployment(deployment.id)


def test_an_image_has_to_be_named(shipped: dict[str, Any]) -> None:
    """No default image: which one runs decides what comes out."""
    assert shipped["variables"]["required"] == ["image"]
    assert "default" not in shipped["variables"]["properties"]["image"]


def test_no_secret_is_in_the_template(shipped: dict[str, Any]) -> None:
    """A token comes from a Kubernetes secret, by its name."""
    (container,) = shipped["job_configuration"]["job_manifest"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["envFrom"] == [{"secretRef": {"name": "{{ token_secret }}", "optional": True}}]
    assert not [
        name for name in shipped["variables"]["properties"]["env"]["default"] if "TOKEN" in name
    ]
