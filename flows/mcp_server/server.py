"""The MCP server: names, descriptions and arguments of the tools, as a client sees them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, Final

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette

from flows.mcp_server import configs, datasets, jobs, tools
from flows.mcp_server.access import Access
from flows.mcp_server.datasets import SentFile, Split
from flows.mcp_server.limits import LOG_LINES, REQUEST_BYTES
from flows.mcp_server.requests import require_job
from flows.mcp_server.tools import Workspace
from stages.contracts.errors import BlocklensError

NAME: Final = "blocklens"
PATH: Final = "/mcp"
_INSTRUCTIONS: Final = (
    "Trains FLUX LoRAs and shows what each transformer block of one does. list-presets, "
    "create-training-config, upload-dataset (train and validation pictures), start-training, "
    "get-training-status until `ended`, evaluate-blocks, list-models, download-model."
)

Name = Annotated[str, Field(description="Letters, digits and . _ -, at most 100, no '..'.")]
JobId = Annotated[str, Field(description="Id of a job, from start-training or the like.")]
JobName = Annotated[str | None, Field(description="What Prefect's page calls the run.")]
Sha256 = Annotated[str | None, Field(description="SHA-256 to compare the bytes with.")]


class DatasetFile(BaseModel):
    """A picture, or a caption (.txt) with its picture's name."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    data: str = Field(description="The bytes, base64.")
    sha256: Sha256 = None


def build_server(workspace: Workspace, access: Access | None) -> MCPServer[Any]:
    """Return the server with all tools; `access` for HTTP, none for stdio."""
    made = (
        _config_tools(workspace),
        _data_tools(workspace),
        _job_tools(workspace),
        _model_tools(workspace),
    )
    return MCPServer(
        NAME,
        title="Blocklens",
        instructions=_INSTRUCTIONS,
        tools=[tool for group in made for tool in group],
        log_level="WARNING",
        auth=access.auth if access else None,
        token_verifier=access.verifier if access else None,
    )


def http_application(workspace: Workspace, access: Access) -> Starlette:
    """Return the server as a web application, at PATH, for those whom `access` lets in."""
    return build_server(workspace, access).streamable_http_app(
        streamable_http_path=PATH,
        json_response=True,
        max_request_body_size=REQUEST_BYTES,
        transport_security=access.security,
        host=access.host,
    )


def _config_tools(workspace: Workspace) -> list[Tool]:
    def list_presets() -> dict[str, Any]:
        """List the complete recipes that a config is made of: base model, memory, purpose."""
        return {"presets": configs.presets(workspace.root)}

    def create_training_config(
        config: Name,
        preset: Annotated[str, Field(description="One of list-presets.")],
        trigger: Annotated[
            str | None, Field(description="Word for the subject; the preset's prompts get it too.")
        ] = None,
        overrides: Annotated[
            dict[str, Any] | None,
            Field(description='Such as {"train.rank": 8, "train.steps": 500}.'),
        ] = None,
    ) -> dict[str, Any]:
        """Keep a preset, with changes, under a name. Every value is checked."""
        return configs.create_config(
            workspace.inbox, workspace.root, config, preset, trigger, overrides or {}
        )

    def list_configs() -> dict[str, Any]:
        """List the configs that were created."""
        return {"configs": configs.list_configs(workspace.inbox)}

    def get_config(config: Name) -> dict[str, Any]:
        """Return a config as YAML: a complete params.yaml."""
        return {"config": config, "text": configs.read_config(workspace.inbox, config)}

    def validate_config(
        config: Annotated[str | None, Field(description="A config that was created.")] = None,
        text: Annotated[str | None, Field(description="Or the YAML of one.")] = None,
    ) -> dict[str, Any]:
        """Check a config, or the YAML of one, and return everything that is wrong with it."""
        return tools.validate_config(workspace, config, text)

    return [
        _tool(list_presets, reads=True),
        _tool(create_training_config),
        _tool(list_configs, reads=True),
        _tool(get_config, reads=True),
        _tool(validate_config, reads=True),
    ]


def _data_tools(workspace: Workspace) -> list[Tool]:
    def upload_dataset(
        dataset: Name,
        files: list[DatasetFile],
        split: Annotated[
            Split, Field(description="validation: never trained on, only measured.")
        ] = "train",
        concept: Annotated[
            str, Field(description="Sub-folder for pictures that show one thing; or empty.")
        ] = "",
    ) -> dict[str, Any]:
        """Add pictures and captions to a dataset, all of them or none; nothing is replaced."""
        sent = [SentFile(file.name, file.data, file.sha256) for file in files]
        return tools.upload_dataset(workspace, dataset, sent, split, concept)

    def list_datasets(
        dataset: Annotated[str | None, Field(description="One of them: with its files.")] = None,
    ) -> dict[str, Any]:
        """List the datasets, or the files of one."""
        if dataset is not None:
            return datasets.describe(workspace.inbox, dataset)
        return {"datasets": datasets.summaries(workspace.inbox)}

    async def generate_captions(
        dataset: Name, config: Name, name: JobName = None
    ) -> dict[str, Any]:
        """Start a job that writes the captions which a dataset lacks, as its config says.

        get-training-status has them when it has ended. Training does this too.
        """
        return await tools.generate_captions(workspace, dataset, config, name)

    return [
        _tool(upload_dataset),
        _tool(list_datasets, reads=True),
        _tool(generate_captions),
    ]


def _job_tools(workspace: Workspace) -> list[Tool]:
    url = workspace.prefect_url

    async def start_training(dataset: Name, config: Name, name: JobName = None) -> dict[str, Any]:
        """Start a job that trains a LoRA. Jobs run one after the other; what is done is reused."""
        return await tools.start_training(workspace, dataset, config, name)

    async def evaluate_blocks(
        model: Annotated[str, Field(description="JOB.adapter of a training, or an uploaded LoRA.")],
        config: Annotated[str | None, Field(description="For an uploaded LoRA only.")] = None,
        name: JobName = None,
    ) -> dict[str, Any]:
        """Start a job that measures every block, makes the slim LoRA and the report."""
        return await tools.evaluate_blocks(workspace, model, config, name)

    async def get_training_status(job: JobId) -> dict[str, Any]:
        """Return state, message, stages and results (metrics, files, blocks, captions) of a job."""
        return await tools.job_status(workspace, job)

    async def get_training_logs(
        job: JobId,
        offset: Annotated[int, Field(description="next_offset of the call before.")] = 0,
        limit: Annotated[int, Field(description=f"1 to {LOG_LINES} lines.")] = LOG_LINES,
    ) -> dict[str, Any]:
        """Return the log of a job, in pieces."""
        return await jobs.job_logs(url, require_job(job), limit, offset)

    async def stop_training(job: JobId) -> dict[str, Any]:
        """Stop a job. Training keeps its state: started again, it goes on where it was."""
        return await jobs.stop_job(url, require_job(job))

    async def list_training_jobs(limit: int = 50, offset: int = 0) -> dict[str, Any]:
        """List jobs, the newest first, also those that were started elsewhere."""
        return {"jobs": await jobs.list_jobs(url, limit, offset)}

    return [
        _tool(start_training),
        _tool(evaluate_blocks),
        _tool(get_training_status, reads=True),
        _tool(get_training_logs, reads=True),
        _tool(stop_training),
        _tool(list_training_jobs, reads=True),
    ]


def _model_tools(workspace: Workspace) -> list[Tool]:
    def upload_lora_chunked_start(
        model: Name, total_bytes: int, sha256: Sha256 = None
    ) -> dict[str, Any]:
        """Begin to upload a LoRA (.safetensors) from elsewhere; returns the id for its pieces."""
        return workspace.uploads.start(model, total_bytes, sha256)

    def upload_lora_chunked_append(
        upload: str, index: Annotated[int, Field(description="0, 1, 2 …")], data: str
    ) -> dict[str, Any]:
        """Send the next piece of a LoRA, base64."""
        return workspace.uploads.append(upload, index, data)

    def upload_lora_chunked_finish(upload: str) -> dict[str, Any]:
        """End an upload: size, hash and header are checked before the LoRA is taken."""
        return workspace.uploads.finish(upload)

    async def list_models() -> dict[str, Any]:
        """List the LoRAs: uploaded ones, and what jobs have made (adapter, adapter-slim)."""
        return await tools.list_models(workspace)

    async def download_model(
        model: Annotated[str, Field(description="One of list-models.")], offset: int = 0
    ) -> str:
        """Return a piece of a LoRA as JSON, base64 in `data`; go on at next_offset until null."""
        return json.dumps(await tools.download_model(workspace, model, offset))

    async def get_system_stats() -> dict[str, Any]:
        """Return cores, memory, disk and GPUs of the machine, and whether jobs can run."""
        return await tools.system_stats(workspace)

    return [
        _tool(upload_lora_chunked_start),
        _tool(upload_lora_chunked_append),
        _tool(upload_lora_chunked_finish),
        _tool(list_models, reads=True),
        _tool(download_model, reads=True, structured=False),
        _tool(get_system_stats, reads=True),
    ]


def _tool(function: Callable[..., Any], *, reads: bool = False, structured: bool = True) -> Tool:
    """Return a tool named like its function, that refuses arguments it does not know."""
    tool = Tool.from_function(
        _answering(function),
        name=function.__name__.replace("_", "-"),
        description=inspect.getdoc(function),
        annotations=ToolAnnotations(
            read_only_hint=reads, destructive_hint=False, open_world_hint=False
        ),
        structured_output=structured,
    )
    model = tool.fn_metadata.arg_model
    model.model_config["extra"] = "forbid"
    model.model_rebuild(force=True)
    tool.parameters = model.model_json_schema(by_alias=True)
    return tool


def _answering(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with our errors as those of a tool: their text reaches the client."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def later(*arguments: Any, **named: Any) -> Any:
            try:
                return await function(*arguments, **named)
            except BlocklensError as error:
                raise ToolError(str(error)) from error

        return later

    @functools.wraps(function)
    def at_once(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except BlocklensError as error:
            raise ToolError(str(error)) from error

    return at_once
