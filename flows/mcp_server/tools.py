"""The tools: what another program can ask for, and what each does with the inbox and with Prefect.

Sizes, names and limits are checked in the modules below; here they are put together.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import anyio.to_thread

from flows.graph import run_dvc
from flows.mcp_server import configs, datasets, jobs, machine, models
from flows.mcp_server.datasets import SentFile, Split
from flows.mcp_server.inbox import Inbox
from flows.mcp_server.limits import JOBS
from flows.mcp_server.requests import RequestError, name_problem, require_job, require_name
from flows.mcp_server.uploads import Uploads
from stages.contracts.errors import BlocklensError, Problem

CAPTIONS: Final = "data/caption/captions.csv"
ADAPTER: Final = "data/train/adapter.safetensors"
_TRAINED: Final = "md5"
"""Tag of an evaluation: the MD5 of the LoRA that was asked for."""

ELSEWHERE: Final = "data/elsewhere"
"""report.origin of a LoRA that was not trained here."""


@dataclass(frozen=True)
class Workspace:
    """What the tools work with: the checkout, its DVC cache, the inbox, and Prefect's address."""

    root: Path
    cache: Path
    inbox: Inbox
    uploads: Uploads
    prefect_url: str


def open_workspace(root: Path, inbox: Inbox, prefect_url: str) -> Workspace:
    """Return what the tools work with in the checkout `root`; the worker has the same DVC cache.

    Raises:
        GraphError: `root` is no checkout.
    """
    cache = Path(run_dvc(root, "cache", "dir").strip())
    return Workspace(root, cache, inbox, Uploads(inbox), prefect_url)


def validate_config(workspace: Workspace, config: str | None, text: str | None) -> dict[str, Any]:
    """Return whether a config, or the text of one, is valid, and all that is wrong with it.

    Raises:
        RequestError: both were given, or none.
    """
    if (config is None) == (text is None):
        problem = Problem("validate-config", "takes one of config and text", "Give one of them.")
        raise RequestError("Nothing was checked", [problem])
    content = text if text is not None else configs.read_config(workspace.inbox, str(config))
    problems = configs.config_problems(workspace.inbox, content)
    return {"valid": not problems, "problems": [str(problem) for problem in problems]}


def upload_dataset(
    workspace: Workspace, dataset: str, files: list[SentFile], split: Split, concept: str
) -> dict[str, Any]:
    """Put files into a dataset and return what it has now."""
    return datasets.add_files(workspace.inbox, dataset, files, split, concept)


async def generate_captions(
    workspace: Workspace, dataset: str, config: str, name: str | None
) -> dict[str, Any]:
    """Start a job that ends with the captions of a dataset."""
    return await _start(workspace, ("caption",), config, dataset, name)


async def start_training(
    workspace: Workspace, dataset: str, config: str, name: str | None
) -> dict[str, Any]:
    """Start a job that trains a LoRA on a dataset."""
    return await _start(workspace, ("train",), config, dataset, name)


async def evaluate_blocks(
    workspace: Workspace, model: str, config: str | None, name: str | None
) -> dict[str, Any]:
    """Start a job that evaluates every block of a LoRA, makes the slim one and the report.

    A LoRA that a job has trained is evaluated with the params of that job: its training is not
    run again. One that was sent needs a config.

    Raises:
        RequestError: there is no such LoRA, or a config is missing or too many.
    """
    if models.is_of_a_job(model):
        return await _evaluate_trained(workspace, model, config, name)
    path = models.find_sent_model(workspace.inbox, model)
    if config is None:
        problem = Problem("config", "is missing", "Name one: it says which base model to use.")
        raise RequestError("This LoRA cannot be evaluated", [problem])
    values = configs.config_values(workspace.inbox, config)
    # No picture takes part: those of the config's own preset may not even be here.
    values |= {"split.adapter": str(path), "report.origin": ELSEWHERE}
    tags = (f"model:{model}", f"config:{config}")
    return await _order(workspace, ("report",), values, tags, name)


async def job_status(workspace: Workspace, job: str) -> dict[str, Any]:
    """Return state, stages and results of a job; of one that stops at captions, these too."""
    status = await jobs.job_status(workspace.prefect_url, require_job(job))
    files = {str(file["path"]): str(file["md5"]) for file in status["results"].get("files", [])}
    if status["targets"] == ["caption"] and CAPTIONS in files:
        path = models.cached(workspace.cache, files[CAPTIONS])
        status["results"]["captions"] = _read_captions(path) if path else []
    for tag in status["tags"]:
        kind, _, md5 = tag.partition(":")
        if kind == _TRAINED and files.get(ADAPTER, md5) != md5:
            status["results"]["warning"] = (
                f"pictures or code have changed since: {ADAPTER} was trained again, and this is "
                "an evaluation of the new one"
            )
    return status


async def list_models(workspace: Workspace) -> dict[str, Any]:
    """Return the LoRAs that were sent, and those of jobs, or why Prefect does not name these."""
    found = models.sent_models(workspace.inbox)
    try:
        runs = await jobs.list_jobs(workspace.prefect_url, limit=JOBS, offset=0)
        ids = [UUID(run["job"]) for run in runs]
        files = await jobs.job_files(workspace.prefect_url, ids) if ids else {}
    except jobs.JobsError as error:
        return {"models": found, "problem": str(error)}
    for run in ids:
        found += models.job_models(workspace.cache, str(run), files.get(run, []))
    return {"models": found, "problem": ""}


async def download_model(workspace: Workspace, model: str, offset: int) -> dict[str, Any]:
    """Return the bytes of a LoRA from `offset` on.

    Raises:
        RequestError: there is no such LoRA, or its file ends before.
    """
    if models.is_of_a_job(require_name("model", model)):
        job = UUID(models.job_of(model)[0])
        files = await jobs.job_files(workspace.prefect_url, [job])
        path = models.find_job_model(workspace.cache, model, files.get(job, []))
    else:
        path = models.find_sent_model(workspace.inbox, model)
    # In a thread: the hash of a large file takes seconds.
    piece = await anyio.to_thread.run_sync(models.read_piece, path, offset)
    return {"model": model, **piece}


async def system_stats(workspace: Workspace) -> dict[str, Any]:
    """Return what the machine has, and whether Prefect answers and a worker is there."""
    try:
        workers = await jobs.workers(workspace.prefect_url)
        prefect: dict[str, Any] = {"answers": True, "workers": workers}
    except BlocklensError as error:
        prefect = {"answers": False, "problem": str(error)}
    return {**machine.machine_state(workspace.inbox.root), "prefect": prefect}


async def _start(
    workspace: Workspace, targets: tuple[str, ...], config: str, dataset: str, name: str | None
) -> dict[str, Any]:
    values = configs.config_values(workspace.inbox, config)
    pictures = datasets.read_dataset(workspace.inbox, dataset)
    if pictures.has_validation == bool(values["prepare.validation_share"]):
        raise RequestError("This dataset cannot be used", [_held_out_problem(dataset, pictures)])
    values |= {
        "prepare.images": str(pictures.images),
        "prepare.validation_images": str(pictures.validation_images),
    }
    return await _order(
        workspace, targets, values, (f"dataset:{dataset}", f"config:{config}"), name
    )


def _held_out_problem(dataset: str, pictures: datasets.Dataset) -> Problem:
    if pictures.has_validation:
        what = "has validation pictures, and the config takes some of the others instead"
        return Problem(dataset, what, "Set prepare.validation_share to 0 in a config.")
    what = "has no validation pictures, and the config takes none from the others"
    remedy = "Upload some with split: validation, or set prepare.validation_share in a config."
    return Problem(dataset, what, remedy)


async def _evaluate_trained(
    workspace: Workspace, model: str, config: str | None, name: str | None
) -> dict[str, Any]:
    job, stem = models.job_of(model)
    if config is not None:
        problem = Problem("config", "is that of the job which trained the LoRA", "Leave it out.")
        raise RequestError("This LoRA cannot be evaluated", [problem])
    if stem != "adapter":
        problem = Problem(model, "is not what the job has trained", f"Evaluate {job}.adapter.")
        raise RequestError("This LoRA cannot be evaluated", [problem])
    files = await jobs.job_files(workspace.prefect_url, [UUID(job)])
    trained = models.find_job_model(workspace.cache, model, files.get(UUID(job), []))
    overrides = await jobs.job_parameters(workspace.prefect_url, UUID(job))
    tags = (f"model:{model}", f"{_TRAINED}:{models.md5_of(trained)}")
    return await _order(workspace, ("report",), overrides, tags, name)


async def _order(
    workspace: Workspace,
    targets: tuple[str, ...],
    values: dict[str, Any],
    tags: tuple[str, ...],
    name: str | None,
) -> dict[str, Any]:
    if name is not None and (problem := name_problem("name", name)):
        raise RequestError("This job is refused", [problem])
    return await jobs.start_job(workspace.prefect_url, jobs.Order(targets, values, tags, name))


def _read_captions(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
