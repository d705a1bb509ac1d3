"""The real client against a Hub on loopback: the run arrives, and refusals are explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from flows.card import write_card
from flows.publish import PublishError, gather
from stages.contracts.params import FetchParams, load_params
from stages.contracts.tables import BLOCKS, read_table
from tests.flows.hub_uploads import GOOD_TOKEN, READ_TOKEN, Received, hub_for_uploads
from tests.reporting.example import Example, write_example

ROOT = Path(__file__).parents[2]
BAD_TOKEN, TORN_TOKEN = "hf_revoked_secret_token", "hf_torn_secret\x07token"
REPOSITORY = "someone/tok"
THERE = {"someone/open": False, "someone/seen": False, "someone/hidden": True}
"""Repositories that exist before, and whether they are private."""
CAPTIONS = '{"train": {"tok": 24, "plain yellow background": 9}}'
ASKS: dict[str, tuple[list[str], str | None]] = {
    "dry": ([REPOSITORY], None),
    "push": ([REPOSITORY, "--push"], GOOD_TOKEN),
    "again": ([REPOSITORY, "--push"], GOOD_TOKEN),
    "update": ([REPOSITORY, "--push", "--update"], GOOD_TOKEN),
    "public": (["someone/shown", "--push", "--public"], GOOD_TOKEN),
    "update open": (["someone/open", "--push", "--update"], GOOD_TOKEN),
    "update public": (["someone/seen", "--push", "--update", "--public"], GOOD_TOKEN),
    "update hidden": (["someone/hidden", "--push", "--update", "--public"], GOOD_TOKEN),
    "full": (["someone/full", "--push"], GOOD_TOKEN),
    "full again": (["someone/full", "--push", "--update"], GOOD_TOKEN),
    "closed": (["someone/closed", "--push", "--public"], GOOD_TOKEN),
    "closed again": (["someone/closed", "--push", "--public", "--update"], GOOD_TOKEN),
    "absent": (["someone/absent", "--push", "--update"], GOOD_TOKEN),
    "refused": (["someone/other", "--push"], BAD_TOKEN),
    "read only": (["someone/other", "--push"], READ_TOKEN),
    "torn": (["someone/other", "--push"], TORN_TOKEN),
    "no token": (["someone/other", "--push"], None),
    "name": (["no//name", "--push"], GOOD_TOKEN),
}
CHILD = """
import contextlib, io, json, os, sys
from flows.publish import main
told = {}
for name, (arguments, token) in json.load(sys.stdin).items():
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(arguments)
    told[name] = (code, said.getvalue())
print("told", json.dumps(told))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("publish")
    small = Example(double_blocks=2, single_blocks=3, side_px=32)
    write_example(folder / "data", small)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prompts"]["held_out"] = params["prompts"]["held_out"][:2]  # as many as it has drawn
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    weights = {"weights": np.zeros(8, dtype=np.float32)}
    save_file(weights, folder / "data/train/adapter.safetensors", {"ss_tag_frequency": CAPTIONS})
    return folder


@pytest.fixture(scope="module")
def asked(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, tuple[int, str]], Received, str]:
    """What every one of ASKS was told with which exit code, what arrived, and all that was said."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    with hub_for_uploads() as (address, received):
        received.private |= THERE
        received.full.add("someone/full")
        received.closed.add("someone/closed")
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            cwd=run,
            env={**environment, "HF_ENDPOINT": address},
            input=json.dumps(ASKS),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("told "))
    told: dict[str, Any] = json.loads(line.removeprefix("told "))
    return {name: tuple(value) for name, value in told.items()}, received, done.stdout + done.stderr


Asked = tuple[dict[str, tuple[int, str]], Received, str]


def test_what_is_pushed_is_the_run(run: Path, asked: Asked) -> None:
    """Both LoRA files and the pictures, byte for byte; private, unless it was to be public."""
    told, received, _ = asked
    assert told["push"][0] == 0, told["push"][1]
    files = received.files[REPOSITORY]
    assert files["adapter.safetensors"] == (run / "data/train/adapter.safetensors").read_bytes()
    slim = run / "data/slim/adapter-slim.safetensors"
    assert files["adapter-slim.safetensors"] == slim.read_bytes()
    picture = run / "data/slim/images/held-out-1-100/slim.png"
    assert files["images/held-out-1-slim.png"] == picture.read_bytes()
    made = {"someone/shown": False, "someone/full": True, "someone/closed": False}
    assert received.private == {REPOSITORY: True, **made, **THERE}
    assert told["update"][0] == told["public"][0] == 0


def test_nothing_is_added_to_what_everybody_sees_unless_asked(asked: Asked) -> None:
    """--update without --public takes a private repository alone, with it a public one alone."""
    told, received, _ = asked
    assert told["update public"][0] == 0, told["update public"][1]
    assert "adapter.safetensors" in received.files["someone/seen"]
    assert received.files.keys().isdisjoint({"someone/open", "someone/hidden"})


def test_the_card_is_read_by_the_hub_and_by_people(asked: Asked) -> None:
    """Trigger, tags and widget pictures in its head; a row per block below."""
    _, received, _ = asked
    card = received.files[REPOSITORY]["README.md"].decode()
    _, head, body = card.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["instance_prompt"] == "tok"
    assert {"lora", "text-to-image", "template:sd-lora"} <= set(data["tags"])
    assert all(each["output"]["url"] in received.files[REPOSITORY] for each in data["widget"])
    assert len(data["widget"]) == 4
    assert sum(line.startswith(("| double.", "| single.")) for line in body.splitlines()) == 5


@pytest.mark.parametrize(
    ("fetch", "base_model", "named"),
    [
        (
            {"repository": "black-forest-labs/FLUX.1-dev", "revision": "a" * 40},
            "black-forest-labs/FLUX.1-dev",
            "[black-forest-labs/FLUX.1-dev](https://huggingface.co/black-forest-labs/FLUX.1-dev)",
        ),
        ({"folder": "/home/someone/models/my-flux/"}, None, "my-flux"),
        (
            {
                "folder": "/home/someone/configs",
                "single_files": {
                    "transformer": "/home/someone/unet/flux1-dev.safetensors",
                    "autoencoder": "/home/someone/ae.safetensors",
                    "text_encoder": "/home/someone/clip_l.safetensors",
                    "text_encoder_2": "/home/someone/t5xxl_fp16.safetensors",
                    "converted": ".blocklens/weights",
                },
            },
            None,
            "flux1-dev",
        ),
    ],
)
def test_the_card_names_the_base_and_no_path(
    run: Path, fetch: dict[str, Any], base_model: str | None, named: str
) -> None:
    """The Hub shows the LoRA under its base by `base_model`; folders here are nobody's business."""
    params = load_params(run / "params.yaml")
    changed = params.model_copy(
        update={"fetch": FetchParams(**{**params.fetch.model_dump(), **fetch})}
    )
    blocks = read_table(BLOCKS, run / "data/evaluate/blocks.csv")
    card = write_card(changed, blocks, run / "data/slim/metrics.json", [])
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head).get("base_model") == base_model
    assert f"A LoRA for {named}. Begin" in body
    assert "/home" not in card


def test_without_push_nobody_is_asked(asked: Asked) -> None:
    """The dry run names every file and needs no token."""
    told, received, _ = asked
    code, said = told["dry"]
    assert code == 0
    assert "nothing is uploaded" in said
    assert all(name in said for name in received.files[REPOSITORY])
    assert f"\nadapter.safetensors quotes your captions (ss_tag_frequency): {CAPTIONS}\n" in said
    created = [path for path in received.requests if path == "/api/repos/create"]
    assert len(created) == 7, "push, again, public, full, closed, refused and read only"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("again", "exists already"),
        ("update open", "is public: everybody would see what is uploaded. Add --public"),
        ("update hidden", "is private, and --update leaves it so. Leave --public out"),
        ("absent", "no such owner"),
        ("refused", "does not know the token"),
        ("read only", "may not write"),
        ("torn", "characters that no token has"),
        ("no token", "does not know the token, or there is none"),
        ("name", "not a repository's name"),
    ],
)
def test_a_refusal_says_what_to_do(name: str, words: str, asked: Asked) -> None:
    """One problem, exit code 1."""
    code, said = asked[0][name]
    assert code == 1
    assert words in said
    assert "Nothing is published (1 problem)" in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [("full", "the token may not write here"), ("closed", "breaks off (HfHubHTTPError)")],
)
def test_a_repository_that_is_left_empty_is_told(name: str, reason: str, asked: Asked) -> None:
    """It was made before the upload broke off, and the way on that the message names works."""
    told, received, _ = asked
    code, said = told[name]
    assert code == 1
    assert "Nothing is published (2 problems)" in said
    assert reason in said
    assert f"someone/{name}: was made, and is still empty. Run the same command with --up" in said
    assert told[f"{name} again"][0] == 0, told[f"{name} again"][1]
    assert "adapter.safetensors" in received.files[f"someone/{name}"]


def test_a_missing_adapter_outside_the_project_is_named(run: Path) -> None:
    """`split.adapter` may be any path; one elsewhere is shown as it is."""
    params = load_params(run / "params.yaml")
    split = params.split.model_copy(update={"adapter": "/elsewhere/lora.safetensors"})
    with pytest.raises(PublishError, match=r"\n.*/elsewhere/lora\.safetensors: missing"):
        gather(run, params.model_copy(update={"split": split}))


def test_no_token_is_said(asked: Asked) -> None:
    """Neither a good one nor one that was refused."""
    said = asked[2]
    assert not [token for token in (GOOD_TOKEN, READ_TOKEN, BAD_TOKEN, TORN_TOKEN) if token in said]
    assert "Traceback" not in said
