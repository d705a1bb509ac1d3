"""The real client against a Hub on loopback: files arrive whole, failures say what to do.

One child process asks for everything, since huggingface_hub reads its environment when it is
imported, and since a token must be seen to stay out of all that a process prints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.families.hub_server import FINE_TOKEN, GOOD_TOKEN, REVISION, Served, hub

BAD_TOKEN = "hf_revoked_secret_token"
OTHER_REVISION = "f" * 40
PIECE_BYTES = 10 << 20
FILE_BYTES = 21_000_000
ASKS = {
    "whole": ("tests/whole", REVISION, ""),
    "cut": ("tests/cut", REVISION, ""),
    "gated": ("tests/gated", REVISION, ""),
    "refused token": ("tests/gated", REVISION, BAD_TOKEN),
    "licence": ("tests/gated", REVISION, GOOD_TOKEN),
    "narrow token": ("tests/gated", REVISION, FINE_TOKEN),
    "absent": ("tests/absent", REVISION, ""),
    "absent with token": ("tests/absent", REVISION, GOOD_TOKEN),
    "forbidden": ("tests/forbidden", REVISION, GOOD_TOKEN),
    "revision": ("tests/whole", OTHER_REVISION, ""),
    "broken": ("tests/broken", REVISION, ""),
    "name": ("no//name", REVISION, ""),
}
MESSAGES = {
    "gated": "tests/gated: gated, and there is no token. Accept the licence at "
    "https://huggingface.co/tests/gated and set HF_TOKEN or run `hf auth login`; "
    "ostris/Flex.1-alpha needs no token.",
    "refused token": "tests/gated: the Hub refuses the token (wrong, expired or revoked). "
    "Make a new one and set HF_TOKEN or run `hf auth login`.",
    "licence": "tests/gated: the licence is not accepted for the account of this token. "
    "Accept it at https://huggingface.co/tests/gated, with the same account.",
    "narrow token": "tests/gated: the token has no right to read gated repositories. "
    "Give it that right at https://huggingface.co/settings/tokens.",
    "absent": "tests/absent: not found, or private and there is no token. "
    "Check the name; if it is private, set HF_TOKEN or run `hf auth login`.",
    "absent with token": "tests/absent: not found. "
    "Check the name; if it is private, set HF_TOKEN or run `hf auth login`.",
    "forbidden": "tests/forbidden: access forbidden (403). "
    "See who may read https://huggingface.co/tests/forbidden.",
    "revision": f"tests/whole: has no revision {OTHER_REVISION}. "
    "Copy a commit hash from https://huggingface.co/tests/whole/commits/main.",
    "broken": "tests/broken: the Hub is out of order (500). Run `dvc repro` again later.",
    "name": "no//name: not a repository name. Write it as owner/name.",
    "nobody": "tests/whole: the Hub does not answer (ConnectError). "
    "Check network and proxy, then run `dvc repro` again.",
    "offline": "tests/whole: not complete in the cache, and HF_HUB_OFFLINE forbids downloads. "
    "Unset HF_HUB_OFFLINE once to fetch the files.",
}
SCRIPT = """
import json, logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from stages.contracts.errors import WeightsError
from stages.families.hub import download
answers = {}
for name, (repository, revision, token) in json.loads(sys.argv[1]).items():
    os.environ["HF_TOKEN"] = token
    try:
        answers[name] = str(download(repository, revision, ["*.json", "*.safetensors"]))
    except WeightsError as error:
        traceback.print_exc()
        answers[name] = str(error.problems[0])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Asked:
    """What a child process got, what it printed on the way, and what the Hub saw of it."""

    answers: dict[str, str]
    printed: str
    served: Served
    source: Path


def ask(asks: dict[str, tuple[str, str, str]], home: Path, **environment: str) -> tuple[str, str]:
    """Return stdout and stderr of a child that downloads."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asks)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """All requests, made once."""
    source = tmp_path_factory.mktemp("source")
    (source / "model_index.json").write_text('{"a": 1}')
    (source / "part").mkdir()
    (source / "part" / "model.safetensors").write_bytes(os.urandom(FILE_BYTES))
    (source / "part" / "model.bin").write_bytes(b"pickle")
    home = tmp_path_factory.mktemp("home")
    with hub(source) as (address, served):
        stdout, stderr = ask(ASKS, home, HF_ENDPOINT=address)
    answers: dict[str, str] = json.loads(stdout)
    return Asked(answers, stdout + stderr, served, source)


def test_wanted_files_arrive_whole(asked: Asked) -> None:
    """What was asked for is there to the byte, and nothing else."""
    folder = Path(asked.answers["whole"])
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"model_index.json", "part/model.safetensors"}
    for name in found:
        assert (folder / name).read_bytes() == (asked.source / name).read_bytes()


def test_cut_download_resumes(asked: Asked) -> None:
    """A connection cut at half the file costs the other half, not the whole file again.

    huggingface_hub writes pieces of 10 MiB: what it has of an unfinished piece is asked for again.
    """
    name = "part/model.safetensors"
    folder = Path(asked.answers["cut"])
    assert (folder / name).read_bytes() == (asked.source / name).read_bytes()
    assert asked.served.ranges == [f"bytes={PIECE_BYTES}-"]
    sent_for_cut = FILE_BYTES // 2 + (FILE_BYTES - PIECE_BYTES)
    assert asked.served.body_bytes[name] == FILE_BYTES + sent_for_cut  # `whole` came before


@pytest.mark.parametrize("name", [name for name in ASKS if name not in ("whole", "cut")])
def test_each_failure_has_its_message(asked: Asked, name: str) -> None:
    """No 403 is shown as "no config.json": each cause has its own words and its own way out."""
    assert asked.answers[name] == MESSAGES[name]


def test_no_token_is_printed(asked: Asked) -> None:
    """Not in messages, tracebacks or debug logs."""
    assert "tests/gated" in asked.printed
    assert "Traceback" in asked.printed
    for token in (GOOD_TOKEN, FINE_TOKEN, BAD_TOKEN):
        assert token not in asked.printed


def test_no_network_and_offline(tmp_path: Path) -> None:
    """Nobody at the address, and downloads forbidden: two causes, two messages."""
    one = {"whole": ("tests/whole", REVISION, "")}
    stdout, _ = ask(one, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert json.loads(stdout)["whole"] == MESSAGES["nobody"]
    stdout, _ = ask(one, tmp_path, HF_HUB_OFFLINE="1")
    assert json.loads(stdout)["whole"] == MESSAGES["offline"]
