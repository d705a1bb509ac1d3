"""What the tools do with an inbox, seen through the SDK's own client."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import yaml
from mcp import Client, StdioServerParameters, stdio_client
from safetensors.numpy import save

from flows.mcp_server import datasets
from flows.mcp_server.configs import LOCATIONS
from flows.mcp_server.inbox import InboxError, open_inbox
from flows.mcp_server.limits import CHUNK_BYTES, DOWNLOAD_BYTES
from flows.mcp_server.tools import Workspace
from flows.overrides import apply_overrides
from stages.contracts.errors import ParamsError
from tests.flows.mcp_server.conftest import ROOT, call, encoded, picture, png, refusal, with_client

TOOLS = {
    "create-training-config",
    "download-model",
    "evaluate-blocks",
    "generate-captions",
    "get-config",
    "get-system-stats",
    "get-training-logs",
    "get-training-status",
    "list-configs",
    "list-datasets",
    "list-models",
    "list-presets",
    "list-training-jobs",
    "start-training",
    "stop-training",
    "upload-dataset",
    "upload-lora-chunked-append",
    "upload-lora-chunked-finish",
    "upload-lora-chunked-start",
    "validate-config",
}


def test_the_tools_and_their_page(workspace: Workspace) -> None:
    """Every tool has a row in docs/mcp.md, every row a tool, and each says what it is for."""
    listed = with_client(workspace, lambda client: client.list_tools()).tools
    assert {tool.name for tool in listed} == TOOLS
    page = (ROOT / "docs/mcp.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows == TOOLS
    for tool in listed:
        assert tool.description
        assert tool.input_schema["additionalProperties"] is False
        reads = tool.name.startswith(("get", "list", "validate", "download"))
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is reads, tool.name


def test_the_page_has_the_limits() -> None:
    """A number in docs/mcp.md that the code does not have would send somebody the wrong way."""
    from flows.mcp_server import limits

    page = (ROOT / "docs/mcp.md").read_text(encoding="utf-8")
    for value in (
        f"{limits.FILE_BYTES >> 20} MiB",
        f"{limits.CALL_BYTES >> 20} MiB",
        f"{limits.REQUEST_BYTES >> 20} MiB",
        f"{limits.CHUNK_BYTES >> 20} MiB",
        f"{limits.DOWNLOAD_BYTES >> 10} KiB",
        f"{limits.CAPTION_BYTES >> 10} KiB",
        f"{limits.CONFIG_BYTES >> 10} KiB",
        f"{limits.HEADER_BYTES >> 20} MiB",
        f"{limits.DATASET_BYTES >> 30} GiB",
        f"{limits.CALL_FILES} files",
        f"{limits.DATASET_FILES} files",
        f"{limits.ENTRIES} of each",
        f"{limits.OPEN_UPLOADS} open",
        f"{limits.LOG_LINES} lines",
    ):
        assert value in page, value


def test_a_config_is_a_preset_with_changes(workspace: Workspace) -> None:
    """What comes back is a complete, valid params.yaml: the preset, but for what was asked."""
    presets = call(workspace, "list-presets")["presets"]
    assert {row["preset"] for row in presets} == {
        path.stem for path in (ROOT / "presets").glob("*.yaml")
    }
    assert all(row["description"] for row in presets)
    changes = {"train.rank": 2, "prompts.seeds": [7]}
    made = {"config": "robot", "preset": "nano-flux", "trigger": "zed", "overrides": changes}
    call(workspace, "create-training-config", **made)
    assert call(workspace, "list-configs") == {"configs": ["robot"]}
    text = call(workspace, "get-config", config="robot")["text"]
    values = yaml.safe_load(text)
    assert values["train"]["rank"] == 2
    assert values["caption"]["trigger"] == "zed"
    assert values["prompts"]["develop"][0].startswith("zed, ")
    before = yaml.safe_load((ROOT / "presets/nano-flux.yaml").read_text(encoding="utf-8"))
    assert values["evaluate"] == before["evaluate"]
    assert values["attribute"]["nodes"] == before["attribute"]["nodes"]
    assert call(workspace, "validate-config", config="robot") == {"valid": True, "problems": []}
    wrong = text.replace("rank: 2", "rank: 0").replace("steps: 300", "stps: 300")
    problems = call(workspace, "validate-config", text=wrong)["problems"]
    assert any("train.rank" in problem for problem in problems)
    assert any("Did you mean 'steps'?" in problem for problem in problems)
    assert str(workspace.inbox.root) not in " ".join(problems)


def test_every_location_of_the_pipeline_is_guarded() -> None:
    """What dvc.yaml puts into a command comes from this side, never from a request."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    found = {part.split("}")[0] for part in text.split("${")[1:]}
    assert len(found) >= 5
    assert found <= LOCATIONS


def test_a_path_of_an_override_reaches_no_shell(tmp_path: Path) -> None:
    """What would end the quotes around a path in a command is no value of a run."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for path in ('x"; touch evil; "', "$(id)", "-rf", "a\nb", "`id`", "a\\", ""):
        with pytest.raises(ParamsError, match=r"prepare\.images"):
            apply_overrides(tmp_path, {"prepare.images": path})
    assert (tmp_path / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    apply_overrides(tmp_path, {"prepare.images": "/srv/Pictures_2/a-b.c"})
    assert "images: /srv/Pictures_2/a-b.c" in (tmp_path / "params.yaml").read_text()


def test_all_values_as_overrides_change_no_line(tmp_path: Path) -> None:
    """A run is given every value of its config; what is so already keeps its line and comments."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values = {
        f"{s}.{key}": value for s, section in document.items() for key, value in section.items()
    }
    apply_overrides(tmp_path, values)
    assert (tmp_path / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=r"encode\.flip"):
        apply_overrides(tmp_path, {"encode.flip": 0})


def test_a_dataset_grows_by_whole_calls(workspace: Workspace) -> None:
    """Pictures, captions, concepts and both splits; names are of one picture in both splits."""
    digest = hashlib.sha256(png()).hexdigest()
    files = [picture("a.png", sha256=digest), {"name": "a.txt", "data": encoded(b"a robot")}]
    first = call(workspace, "upload-dataset", dataset="robot", files=files)
    assert (first["train"], first["validation"]) == (["a.png", "a.txt"], [])
    with pytest.raises(AssertionError, match="the other split"):
        call(
            workspace,
            "upload-dataset",
            dataset="robot",
            files=[picture("a.webp")],
            split="validation",
        )
    more: dict[str, Any] = {"dataset": "robot", "files": [picture("b.png")]}
    call(workspace, "upload-dataset", **more, split="validation")
    call(workspace, "upload-dataset", **more, concept="side")
    assert "this split" in refusal(
        workspace, "upload-dataset", dataset="robot", files=[picture("side-b.png")]
    )
    listed = call(workspace, "list-datasets", dataset="robot")
    assert listed["train"] == ["a.png", "a.txt", "side/b.png"]
    assert listed["validation"] == ["b.png"]
    assert call(workspace, "list-datasets")["datasets"] == [
        {
            "dataset": "robot",
            "bytes": listed["bytes"],
            "train": {"pictures": 2, "captions": 1},
            "validation": {"pictures": 1, "captions": 0},
        }
    ]
    assert (workspace.inbox.root / "datasets/robot/train/a.png").read_bytes() == png()


def test_a_dataset_without_held_out_pictures_needs_a_share(workspace: Workspace) -> None:
    """Training without validation pictures is refused before a job is made, with both ways out."""
    call(workspace, "upload-dataset", dataset="robot", files=[picture("a.png")])
    call(workspace, "create-training-config", config="none", preset="nano-flux")
    share = {"prepare.validation_share": 0.2}
    call(workspace, "create-training-config", config="some", preset="nano-flux", overrides=share)
    said = refusal(workspace, "start-training", dataset="robot", config="none")
    assert "set prepare.validation_share" in said
    # The next hurdle is Prefect, which does not answer here.
    said = refusal(workspace, "start-training", dataset="robot", config="some")
    assert "start it with `make serve`" in said
    read = datasets.read_dataset(workspace.inbox, "robot")
    assert read.images == read.validation_images
    held: dict[str, Any] = {"dataset": "robot", "files": [picture("b.png")]}
    call(workspace, "upload-dataset", **held, split="validation")
    said = refusal(workspace, "start-training", dataset="robot", config="some")
    assert "Set prepare.validation_share to 0" in said
    call(workspace, "upload-dataset", dataset="held", files=[picture("a.png")], split="validation")
    assert "has no training pictures" in refusal(
        workspace, "start-training", dataset="held", config="some"
    )


def test_a_lora_comes_back_as_it_was_sent(workspace: Workspace) -> None:
    """Up in pieces, listed, and down in pieces that fit into one event of a client."""
    noise = np.random.default_rng(0).standard_normal((CHUNK_BYTES // 4 + 5, 1), dtype=np.float32)
    content = save({"transformer_blocks.0.attn.to_q.lora_A.weight": noise})
    whole = {"total_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    async def up_and_down(client: Client) -> bytes:
        async def ask(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, result.content
            answer: dict[str, Any] = json.loads(result.content[0].text)  # type: ignore[union-attr]
            return answer

        upload = (await ask("upload-lora-chunked-start", model="mine", **whole))["upload"]
        for index, begin in enumerate(range(0, len(content), CHUNK_BYTES)):
            piece = encoded(content[begin : begin + CHUNK_BYTES])
            await ask("upload-lora-chunked-append", upload=upload, index=index, data=piece)
        await ask("upload-lora-chunked-finish", upload=upload)
        assert (await ask("list-models"))["models"] == [
            {"model": "mine", "from": "upload", "bytes": len(content)}
        ]
        got, offset = b"", 0
        while offset is not None:
            result = await ask("download-model", model="mine", offset=offset)
            assert len(json.dumps(result)) < 1 << 20
            assert result["bytes"] <= DOWNLOAD_BYTES
            got, offset = got + base64.b64decode(result["data"]), result["next_offset"]
        return got

    assert with_client(workspace, up_and_down) == content


def test_the_machine_is_described(workspace: Workspace) -> None:
    """Cores, memory and disk are numbers, and a server that is missing is said to be so."""
    stats = call(workspace, "get-system-stats")
    assert stats["cpu_cores"] == os.cpu_count()
    assert 0 < stats["memory_available_bytes"] <= stats["memory_bytes"]
    assert 0 < stats["disk_free_bytes"] <= stats["disk_bytes"]
    assert stats["prefect"]["answers"] is False
    assert "make serve" in call(workspace, "list-models")["problem"]


def test_an_inbox_belongs_where_commands_can_name_it(tmp_path: Path) -> None:
    """A path that would end the quotes of a command is refused; a space is none."""
    with pytest.raises(InboxError, match="a shell would interpret"), open_inbox(tmp_path / "a$b"):
        pass
    with open_inbox(tmp_path / "a b") as inbox:
        assert inbox.root.name == "a b"
    (tmp_path / "file").write_text("")
    with pytest.raises(InboxError, match="a file lies where"), open_inbox(tmp_path / "file"):
        pass


def test_what_a_dead_server_left_is_removed(tmp_path: Path) -> None:
    """Half an upload of a killed server takes no room for ever; that of a living one stays."""
    left = tmp_path / "inbox/.staging/dead"
    left.mkdir(parents=True)
    (left / "owner.lock").touch()
    (left / "upload-1").write_bytes(b"half")
    with open_inbox(tmp_path / "inbox") as one:
        (one.staging / "upload-2").write_bytes(b"half")
        with open_inbox(tmp_path / "inbox") as other:
            assert not left.exists()
            assert (one.staging / "upload-2").exists()
            assert other.staging != one.staging
    assert [path.name for path in (tmp_path / "inbox/.staging").iterdir()] == []


@pytest.mark.slow
def test_a_program_starts_the_server_itself(tmp_path: Path) -> None:
    """Over stdio: a client starts it, calls a tool, and it ends with the client."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "flows.mcp_server", "--stdio"],
        cwd=ROOT,
        env={
            **os.environ,
            "BLOCKLENS_INBOX": str(tmp_path / "inbox"),
            "PREFECT_HOME": str(tmp_path),
        },
    )

    async def use() -> dict[str, Any]:
        async with Client(stdio_client(server)) as client:
            result = await client.call_tool("list-presets", {})
            answer: dict[str, Any] = json.loads(result.content[0].text)  # type: ignore[union-attr]
            return answer

    assert len(anyio.run(use)["presets"]) >= 6
    assert [path.name for path in (tmp_path / "inbox/.staging").iterdir()] == []
