"""Requests that must not succeed: each is refused in words, and nothing has been written."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import resource
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from flows.mcp_server.limits import (
    ADAPTER_BYTES,
    CALL_FILES,
    CAPTION_BYTES,
    CHUNK_BYTES,
    FILE_BYTES,
    HEADER_BYTES,
    OPEN_UPLOADS,
)
from flows.mcp_server.tools import Workspace
from tests.flows.mcp_server.conftest import call, encoded, opened_house, picture, png, refusal

JOB = "0123abcd-0123-0123-0123-0123456789ab"
BAD_NAMES = {
    "up": "../x",
    "up in the middle": "a/../../x",
    "absolute": "/etc",
    "separator": "a/b",
    "backslash": "a\\..\\b",
    "two dots": "..",
    "dots within": "a..b",
    "dot at the end": "a.",
    "hidden": ".git",
    "empty": "",
    "too long": "a" * 101,
    "zero byte": "a\0b",
    "line end": "a\n",
    "space": "a b",
    "option": "-rf",
    "shell": "$(id)",
    "look-alike": "\uff41",
    "escaped": "%2e%2e",
}


def snapshot(folder: Path) -> dict[str, str]:
    """Return every file and link below a folder with its hash or target; locks left out."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or (path.is_file() and path.suffix != ".lock")
    }


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """An inbox with a dataset, a config, a LoRA, and links to what is outside.

    One for all requests: none of them may change it.
    """
    folder = tmp_path_factory.mktemp("furnished")
    with opened_house(folder) as workspace:
        furnish(workspace, folder / "secret")
        yield workspace


def furnish(workspace: Workspace, secret: Path) -> None:
    """Put things into an inbox, and links to things in `secret`."""
    (secret / "train").mkdir(parents=True)
    (secret / "train" / "private.png").write_bytes(png())
    (secret / "key.safetensors").write_bytes(adapter())
    (secret / "params.yaml").write_text("secret: 1\n")
    root = workspace.inbox.root
    (root / "datasets" / "link").symlink_to(secret)
    (root / "configs" / "link.yaml").symlink_to(secret / "params.yaml")
    (root / "adapters" / "link.safetensors").symlink_to(secret / "key.safetensors")
    (root / "adapters" / "here.safetensors").write_bytes(adapter())
    call(workspace, "upload-dataset", dataset="here", files=[picture("a.png")])
    call(workspace, "upload-dataset", dataset="linked", files=[picture("a.png")])
    (root / "datasets" / "linked" / "validation").symlink_to(secret)
    call(workspace, "upload-dataset", dataset="deep", files=[picture("a.png")])
    (root / "datasets" / "deep" / "train" / "concept").symlink_to(secret / "train")
    call(workspace, "create-training-config", config="here", preset="nano-flux")


def outside(workspace: Workspace) -> Path:
    """Return the folder that a furnished workspace and the secret lie in."""
    return workspace.inbox.root.parents[1]


def adapter(name: str = "lora_A.weight", dtype: Any = np.float16) -> bytes:
    """Return a safetensors file with one tensor."""
    tensor = np.zeros((2, 2), dtype=dtype)
    return save({f"transformer.transformer_blocks.0.attn.to_q.{name}": tensor})


def bomb() -> bytes:
    """Return a PNG whose header says 60,000 x 60,000 pixels."""
    content = bytearray(png())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def zipped() -> bytes:
    """Return what torch.save writes: a zip with a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return buffer.getvalue()


def postscript() -> bytes:
    """Return a picture that Pillow would open by running Ghostscript."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    return buffer.getvalue()


def files(*sent: dict[str, Any]) -> dict[str, Any]:
    """Return an upload to a new dataset."""
    return {"dataset": "new", "files": list(sent)}


def named(content: bytes, name: str = "a.png", **more: Any) -> dict[str, Any]:
    """Return a file as it is sent."""
    return {"name": name, "data": encoded(content), **more}


def config(**overrides: Any) -> dict[str, Any]:
    """Return a request for a config with changes: `train__rank` is `train.rank`."""
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return {"config": "new", "preset": "nano-flux", "overrides": changes}


TRAINING_ADAPTER = {"file": "/etc/passwd", "repository": None, "revision": None, "sha256": "0" * 64}
UPLOAD, CREATE = "upload-dataset", "create-training-config"
REQUESTS: dict[str, tuple[str, dict[str, Any] | Callable[[], dict[str, Any]], str]] = {
    **{
        f"file called: {what}": (UPLOAD, files(named(png(), f"{name}.png")), "cannot be used")
        for what, name in BAD_NAMES.items()
        if what not in ("dot at the end", "empty", "two dots")
    },
    "file without a kind": (UPLOAD, files(named(png(), "a")), "neither picture nor caption"),
    "program": (UPLOAD, files(named(b"import os", "a.py")), "neither picture nor caption"),
    "drawing with scripts": (UPLOAD, files(named(b"<svg/>", "a.svg")), "neither picture nor"),
    "text as a picture": (UPLOAD, files(named(b"hello")), "not a picture despite its name"),
    "PostScript as a picture": (
        UPLOAD,
        lambda: files(named(postscript())),
        "not a picture despite its name",
    ),
    "half a picture": (UPLOAD, files(named(png(64)[:-30])), "damaged or truncated"),
    "huge picture in a small file": (UPLOAD, files(named(bomb())), "60000x60000 pixels, more than"),
    "no base64": (UPLOAD, files({"name": "a.png", "data": "%%%"}), "is no base64"),
    "base64 beyond ASCII": (UPLOAD, files({"name": "a.png", "data": "\uff41aaa"}), "is no base64"),
    "nothing": (UPLOAD, files({"name": "a.png", "data": ""}), "is empty"),
    "no files": (UPLOAD, files(), "Send one or more"),
    "another hash": (UPLOAD, files(picture("a.png", sha256="0" * 64)), "arrived with SHA-256"),
    "no hash": (UPLOAD, files(picture("a.png", sha256="x")), "is no SHA-256"),
    "large file": (
        UPLOAD,
        lambda: files({"name": "a.png", "data": "A" * (FILE_BYTES * 4 // 3 + 64)}),
        f"more than the {FILE_BYTES} allowed",
    ),
    "large call": (
        UPLOAD,
        lambda: files(
            *({"name": f"{n}.png", "data": "A" * (FILE_BYTES * 4 // 5)} for n in range(3))
        ),
        "of one call",
    ),
    "large caption": (
        UPLOAD,
        files(named(b"a" * (CAPTION_BYTES + 1), "a.txt")),
        f"more than the {CAPTION_BYTES} allowed",
    ),
    "many files": (
        UPLOAD,
        files(*(picture(f"{n}.png") for n in range(CALL_FILES + 1))),
        f"more than the {CALL_FILES}",
    ),
    "a name twice": (UPLOAD, files(picture("a.png"), picture("A.png")), "is sent twice"),
    "a picture twice": (UPLOAD, files(picture("a.png"), picture("a.webp")), "has the name of"),
    "one bad of two": (UPLOAD, files(picture("a.png"), named(b"x", "b.png")), "none was taken"),
    "replacing": (UPLOAD, {"dataset": "here", "files": [picture("a.png")]}, "already"),
    "replacing, in capitals": (UPLOAD, {"dataset": "HERE", "files": [picture("b.png")]}, "already"),
    "caption of bytes": (UPLOAD, files(named(b"\xff\xfe\x00", "a.txt")), "is not UTF-8"),
    "caption with a zero": (UPLOAD, files(named(b"a\0b", "a.txt")), "is no caption"),
    "into a link": (UPLOAD, {"dataset": "link", "files": [picture("b.png")]}, "is a link"),
    "into a linked split": (
        UPLOAD,
        {"dataset": "linked", "files": [picture("b.png")], "split": "validation"},
        "is a link",
    ),
    "beside a linked split": (UPLOAD, {"dataset": "linked", "files": [picture("b.png")]}, "a link"),
    "split that is a path": (UPLOAD, files(picture("a.png")) | {"split": "../.."}, "train"),
    "concept that is a path": (
        UPLOAD,
        files(picture("a.png")) | {"concept": "../../.."},
        "cannot be used",
    ),
    "unknown argument": (UPLOAD, files(picture("a.png")) | {"path": "/etc"}, "not permitted"),
    "files of a link": ("list-datasets", {"dataset": "link"}, "is a link"),
    "config outside": ("get-config", {"config": "../../../params"}, "cannot be used"),
    "config through a link": ("get-config", {"config": "link"}, "is a link"),
    "preset outside": (CREATE, {"config": "new", "preset": "../params"}, "cannot be used"),
    "config again": (CREATE, {"config": "Here", "preset": "nano-flux"}, "already"),
    "pictures of the server": (
        CREATE,
        config(prepare__images="/home"),
        "names files of the server",
    ),
    "command as a path": (
        CREATE,
        config(prepare__validation_images="x; touch evil"),
        "names files of the server",
    ),
    "weights of the server": (CREATE, config(fetch__folder="/root"), "names files of the server"),
    "distances by a model of the server": (
        CREATE,
        config(evaluate__distances=[{"metric": "clip", "folder": "/x", "sha256": "0" * 64}]),
        "names files of the server",
    ),
    "LoRA of the server": (CREATE, config(split__adapter="/x"), "names files of the server"),
    "repository that is a path": (
        CREATE,
        config(fetch__repository="../../etc", fetch__revision="a" * 40),
        "is no repository",
    ),
    "training adapter of the server": (
        CREATE,
        config(train__training_adapter=TRAINING_ADAPTER),
        "is no file of a repository",
    ),
    "no parameter": (CREATE, config(train__rnk=4), "Did you mean 'train.rank'?"),
    "value out of range": (CREATE, config(train__rank=100_000), "less than or equal to 512"),
    "value of another kind": (CREATE, config(train__rank=[[[]]]), "valid integer"),
    "endless config": (CREATE, config(report__title="a" * 70_000), "more than the 65536 allowed"),
    "training on what is not here": (
        "start-training",
        {"dataset": "nothing", "config": "here"},
        "there is no nothing",
    ),
    "training on a link": ("start-training", {"dataset": "link", "config": "here"}, "is a link"),
    "training on a linked split": (
        "start-training",
        {"dataset": "linked", "config": "here"},
        "datasets/linked/validation: is a link",
    ),
    "training on a linked concept": (
        "start-training",
        {"dataset": "deep", "config": "here"},
        "datasets/deep/train/concept: is a link",
    ),
    "training without a config": (
        "start-training",
        {"dataset": "here", "config": "../../params"},
        "cannot be used",
    ),
    "evaluating a path": (
        "evaluate-blocks",
        {"model": "../../secret/key", "config": "here"},
        "cannot be used",
    ),
    "evaluating a link": ("evaluate-blocks", {"model": "link", "config": "here"}, "is a link"),
    "evaluating without a config": ("evaluate-blocks", {"model": "here"}, "config: is missing"),
    "evaluating with a second config": (
        "evaluate-blocks",
        {"model": f"{JOB}.adapter", "config": "here"},
        "Leave it out",
    ),
    "no job": ("get-training-status", {"job": "1 or 1=1"}, "is no id of a job"),
    "logs of a path": ("get-training-logs", {"job": "../../etc"}, "is no id of a job"),
    "stopping everything": ("stop-training", {"job": "*"}, "is no id of a job"),
    "fetching a path": ("download-model", {"model": "../../secret/key"}, "cannot be used"),
    "fetching a link": ("download-model", {"model": "link"}, "is a link"),
    "fetching before the start": ("download-model", {"model": "here", "offset": -1}, "offset: is"),
    "fetching after the end": ("download-model", {"model": "here", "offset": 10**9}, "offset: is"),
    "LoRA of no size": (
        "upload-lora-chunked-start",
        {"model": "x", "total_bytes": 0},
        "expected 1",
    ),
    "LoRA of any size": (
        "upload-lora-chunked-start",
        {"model": "x", "total_bytes": ADAPTER_BYTES + 1},
        "expected 1 to",
    ),
    "LoRA with half a hash": (
        "upload-lora-chunked-start",
        {"model": "x", "total_bytes": 9, "sha256": "ab"},
        "is no SHA-256",
    ),
    "LoRA called like a job's": (
        "upload-lora-chunked-start",
        {"model": f"{JOB}.adapter", "total_bytes": 9},
        "is how the LoRA of a job is called",
    ),
    "LoRA again": ("upload-lora-chunked-start", {"model": "here", "total_bytes": 9}, "already"),
    "LoRA over a link": ("upload-lora-chunked-start", {"model": "link", "total_bytes": 9}, "link"),
    "piece of nothing": (
        "upload-lora-chunked-append",
        {"upload": "../../x", "index": 0, "data": "AAAA"},
        "is not open",
    ),
    "end of nothing": ("upload-lora-chunked-finish", {"upload": "x" * 10_000}, "is not open"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_hostile_request_is_refused_and_writes_nothing(furnished: Workspace, what: str) -> None:
    """Whatever is asked for, the answer says why not, and every file is as it was."""
    tool, arguments, answer = REQUESTS[what]
    before = snapshot(outside(furnished))
    asked = arguments() if callable(arguments) else arguments
    said = refusal(furnished, tool, **asked)
    assert answer in said
    assert str(outside(furnished)) not in said
    assert snapshot(outside(furnished)) == before
    assert [path.suffix for path in furnished.inbox.staging.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_no_tool_takes_a_name_outside_the_grammar(furnished: Workspace, name: str) -> None:
    """Datasets, configs, LoRAs and runs have the same grammar, wherever they are named."""
    before = snapshot(outside(furnished))
    here = {"dataset": "here", "config": "here"}
    for tool, arguments in (
        ("upload-dataset", {"dataset": name, "files": [picture("a.png")]}),
        ("list-datasets", {"dataset": name}),
        ("create-training-config", {"config": name, "preset": "nano-flux"}),
        ("create-training-config", {"config": "new", "preset": name}),
        ("get-config", {"config": name}),
        ("validate-config", {"config": name}),
        ("generate-captions", here | {"dataset": name}),
        ("start-training", here | {"config": name}),
        ("evaluate-blocks", {"model": name, "config": "here"}),
        ("download-model", {"model": name}),
        ("upload-lora-chunked-start", {"model": name, "total_bytes": 9}),
    ):
        assert "cannot be used" in refusal(furnished, tool, **arguments), tool
    assert snapshot(outside(furnished)) == before


def test_a_config_that_explodes_is_not_read(furnished: Workspace) -> None:
    """YAML can refer to itself, name Python's own objects, and be deeper than a stack."""
    laughs = "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"
    for text, answer in (
        (laughs, "anchors, aliases or tags"),
        ("!!python/object/apply:os.system ['id']", "anchors, aliases or tags"),
        ("[" * 20_000, "levels deep"),
        ("a: " * 5_000, "is no YAML"),
        ("a" * 70_000, "more than the 65536 allowed"),
        ("- 1\n", "valid dictionary"),
        ("", "valid dictionary"),
        ("a: \x00", "is no YAML"),
    ):
        answered = call(furnished, "validate-config", text=text)
        assert answered["valid"] is False
        assert answer in " ".join(answered["problems"]), text[:40]
    assert "takes one of" in refusal(furnished, "validate-config")


def lying_header(length: int, header: dict[str, Any], data: bytes = b"") -> bytes:
    """Return a safetensors file that says its header has this length."""
    return struct.pack("<Q", length) + json.dumps(header).encode() + data


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    """Return a tensor of a header."""
    return {"a.lora_A.weight": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


NO_LORAS = {
    "pickle": (b"\x80\x04\x95" + b"x" * 90, "is a pickle"),
    "pickle in a zip": (zipped(), "is a pickle"),
    "web page": (b"<html><body>sign in</body></html>", "is a web page"),
    "empty header": (struct.pack("<Q", 0), "no safetensors file"),
    "cut short": (adapter()[:-3], "truncated"),
    "something behind": (adapter() + b"#!/bin/sh", "truncated or no safetensors"),
    "length beyond the file": (lying_header(1 << 62, {}), "no safetensors file"),
    "no JSON": (struct.pack("<Q", 8) + b"not json", "no safetensors file"),
    "offsets beyond the file": (
        lying_header(len(json.dumps(entry("F16", [9], 0, 18))), entry("F16", [9], 0, 18), b"12"),
        "no safetensors file",
    ),
    "shape that lies": (
        lying_header(len(json.dumps(entry("F16", [99], 0, 2))), entry("F16", [99], 0, 2), b"12"),
        "no safetensors file",
    ),
    "a whole model": (adapter("weight"), "none is of a LoRA"),
    "whole numbers": (adapter(dtype=np.int32), "has tensors of I32"),
    "numbers that no stage reads": (adapter(dtype=np.float64), "has tensors of F64"),
    "header without end": (
        struct.pack("<Q", HEADER_BYTES + 1) + b" " * (HEADER_BYTES + 2),
        "has a header of",
    ),
}


def send_adapter(workspace: Workspace, content: bytes, **start: Any) -> str:
    """Send a file as a LoRA and return the id of the upload, which is not finished."""
    asked = {"model": "new", "total_bytes": len(content)} | start
    upload: str = call(workspace, "upload-lora-chunked-start", **asked)["upload"]
    for index, begin in enumerate(range(0, len(content), CHUNK_BYTES)):
        piece = encoded(content[begin : begin + CHUNK_BYTES])
        call(workspace, "upload-lora-chunked-append", upload=upload, index=index, data=piece)
    return upload


@pytest.mark.parametrize("what", NO_LORAS)
def test_what_is_no_lora_is_not_taken(workspace: Workspace, tmp_path: Path, what: str) -> None:
    """Pickles, pages, cut and lying files end with their upload."""
    content, answer = NO_LORAS[what]
    before = snapshot(tmp_path)
    upload = send_adapter(workspace, content)
    assert answer in refusal(workspace, "upload-lora-chunked-finish", upload=upload)
    assert "is not open" in refusal(workspace, "upload-lora-chunked-finish", upload=upload)
    assert snapshot(tmp_path) == before


def test_pieces_have_an_order_and_a_sum(workspace: Workspace) -> None:
    """A piece twice, early, too large or too much changes nothing, and the right one still fits."""
    content = adapter()
    whole = {"model": "new", "total_bytes": len(content)}
    upload = call(workspace, "upload-lora-chunked-start", **whole)["upload"]
    half = len(content) // 2

    def refused(index: int, piece: bytes) -> str:
        data = encoded(piece)
        return refusal(
            workspace, "upload-lora-chunked-append", upload=upload, index=index, data=data
        )

    assert "is not the next one, which is 0" in refused(1, content)
    assert "is not the next one" in refused(-1, content)
    assert "more than the" in refused(0, content + b"x")
    assert "is empty" in refused(0, b"")
    assert "allowed" in refused(0, b"x" * (CHUNK_BYTES + 1))
    first = {"upload": upload, "index": 0, "data": encoded(content[:half])}
    assert call(workspace, "upload-lora-chunked-append", **first)["next_index"] == 1
    assert "which is 1" in refusal(workspace, "upload-lora-chunked-append", **first)
    assert f"has {half} of {len(content)}" in refusal(
        workspace, "upload-lora-chunked-finish", upload=upload
    )
    rest = {"upload": upload, "index": 1, "data": encoded(content[half:])}
    assert call(workspace, "upload-lora-chunked-append", **rest)["received_bytes"] == len(content)
    taken = call(workspace, "upload-lora-chunked-finish", upload=upload)
    assert taken["sha256"] == hashlib.sha256(content).hexdigest()
    assert (workspace.inbox.root / "adapters/new.safetensors").read_bytes() == content


def test_another_hash_ends_an_upload(workspace: Workspace) -> None:
    """Bytes that are not those that were announced are not kept."""
    upload = send_adapter(workspace, adapter(), sha256="0" * 64)
    assert "arrived with SHA-256" in refusal(workspace, "upload-lora-chunked-finish", upload=upload)
    assert call(workspace, "list-models")["models"] == []


def test_open_uploads_share_what_is_free(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone would fit, all together would not: room is promised once."""
    free = shutil.disk_usage(workspace.inbox.root).free
    monkeypatch.setattr("flows.mcp_server.uploads.ADAPTER_BYTES", free)
    monkeypatch.setattr("flows.mcp_server.inbox.FREE_BYTES", 0)
    most = {"model": "most", "total_bytes": free // 4 * 3}
    call(workspace, "upload-lora-chunked-start", **most)
    more = most | {"model": "more"}
    assert "The disk is full" in refusal(workspace, "upload-lora-chunked-start", **more)


def test_a_piece_that_does_not_fit_on_the_disk_can_be_sent_again(workspace: Workspace) -> None:
    """Half of it would be in the file, and the whole behind that half."""
    content = adapter()
    half = len(content) // 2
    asked = {"model": "new", "total_bytes": len(content)}
    upload = call(workspace, "upload-lora-chunked-start", **asked)["upload"]
    append = functools.partial(call, workspace, "upload-lora-chunked-append", upload=upload)
    append(index=0, data=encoded(content[:half]))
    rest = {"index": 1, "data": encoded(content[half:])}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (half + 9, unlimited[1]))
    try:
        said = refusal(workspace, "upload-lora-chunked-append", upload=upload, **rest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "chunk 1: could not be written" in said
    assert "send it again" in said
    assert append(**rest)["received_bytes"] == len(content)
    call(workspace, "upload-lora-chunked-finish", upload=upload)
    assert (workspace.inbox.root / "adapters/new.safetensors").read_bytes() == content


def test_uploads_and_entries_have_an_end(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beginning without end nor small things without number fills the server."""
    for number in range(OPEN_UPLOADS):
        call(workspace, "upload-lora-chunked-start", model=f"l{number}", total_bytes=9)
    more = {"model": "more", "total_bytes": 9}
    assert f"{OPEN_UPLOADS} are open" in refusal(workspace, "upload-lora-chunked-start", **more)
    monkeypatch.setattr("flows.mcp_server.uploads.FORGOTTEN_AFTER_S", 0.0)
    call(workspace, "upload-lora-chunked-start", **more)
    monkeypatch.setattr("flows.mcp_server.inbox.ENTRIES", 1)
    call(workspace, "create-training-config", config="one", preset="nano-flux")
    two = {"config": "two", "preset": "nano-flux"}
    assert "there are 1 already" in refusal(workspace, "create-training-config", **two)
    monkeypatch.setattr("flows.mcp_server.inbox.FREE_BYTES", 1 << 60)
    files_ = [picture("a.png")]
    assert "The disk is full" in refusal(workspace, "upload-dataset", dataset="d", files=files_)
    monkeypatch.setattr("flows.mcp_server.inbox.FREE_BYTES", 0)
    monkeypatch.setattr("flows.mcp_server.datasets.DATASET_FILES", 0)
    monkeypatch.setattr("flows.mcp_server.datasets.DATASET_BYTES", 0)
    full = refusal(workspace, "upload-dataset", dataset="d", files=files_)
    assert "would have 1 files" in full
    assert "bytes, more than 0" in full
