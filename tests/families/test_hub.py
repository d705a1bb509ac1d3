"""The real client against a Hub on loopback: files arrive whole, failures say what to do.

Child processes do the asking, since huggingface_hub reads its environment when it is imported,
and since a token must be seen to stay out of all that a process prints. They run side by side:
the client tries several times with pauses before it gives a server up.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.families.hub_server import FINE_TOKEN, GOOD_TOKEN, REVISION, Served, hub

BAD_TOKEN = "hf_revoked_secret_token"
TORN_TOKEN = "hf_torn_secret\x07token"
TOKENS = (GOOD_TOKEN, FINE_TOKEN, BAD_TOKEN, TORN_TOKEN)
OTHER_REVISION = "f" * 40
PIECE_BYTES = 10 << 20
FILE_BYTES = 21_000_000
LARGE = "part/model.safetensors"
WANTED = ["*.json", "*.safetensors"]
ASKS = {
    "whole": ("tests/whole", REVISION, ""),
    "again": ("tests/whole", REVISION, ""),
    "cut": ("tests/cut", REVISION, ""),
    "moved": ("tests/moved", REVISION, GOOD_TOKEN),
    "altered": ("tests/altered", REVISION, ""),
    "altered once": ("tests/altered-once", REVISION, ""),
    "altered small": ("tests/altered-small", REVISION, ""),
    "huge": ("tests/huge", REVISION, ""),
    "gated": ("tests/gated", REVISION, ""),
    "refused token": ("tests/gated", REVISION, BAD_TOKEN),
    "torn token": ("tests/gated", REVISION, TORN_TOKEN),
    "licence": ("tests/gated", REVISION, GOOD_TOKEN),
    "narrow token": ("tests/gated", REVISION, FINE_TOKEN),
    "gated files": ("tests/gated-files", REVISION, ""),
    "licence for files": ("tests/gated-files", REVISION, GOOD_TOKEN),
    "absent": ("tests/absent", REVISION, ""),
    "absent with token": ("tests/absent", REVISION, GOOD_TOKEN),
    "forbidden": ("tests/forbidden", REVISION, GOOD_TOKEN),
    "revision": ("tests/whole", OTHER_REVISION, ""),
    "name": ("no//name", REVISION, ""),
}
SLOW_ASKS = {  # each in a process of its own
    "broken": ("tests/broken", REVISION, ""),
    "busy": ("tests/busy", REVISION, ""),
    "stuck": ("tests/stuck", REVISION, ""),
    "stalled": ("tests/stalled", REVISION, ""),
    "slow": ("tests/slow", REVISION, ""),
}
GATED = (
    "gated, and there is no token. Accept the licence at https://huggingface.co/{0} and set "
    "HF_TOKEN or run `hf auth login`; ostris/Flex.1-alpha (Apache-2.0) needs no token."
)
LICENCE = (
    "the licence is not accepted for the account of this token. Accept it at "
    "https://huggingface.co/{0}, with the same account."
)
SLOW = (
    "the Hub answers too slowly. "
    "Run `dvc repro` again; HF_HUB_DOWNLOAD_TIMEOUT sets the seconds to wait."
)
MESSAGES = {
    "gated": f"tests/gated: {GATED.format('tests/gated')}",
    "gated files": f"tests/gated-files: {GATED.format('tests/gated-files')}",
    "refused token": "tests/gated: the Hub refuses the token (wrong, expired or revoked). "
    "Make a new one and set HF_TOKEN or run `hf auth login`.",
    "torn token": "the token: holds characters that no token has (spaces, line breaks or letters "
    "beyond a-z). Copy it again from https://huggingface.co/settings/tokens.",
    "licence": f"tests/gated: {LICENCE.format('tests/gated')}",
    "licence for files": f"tests/gated-files: {LICENCE.format('tests/gated-files')}",
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
    "name": "no//name: not a repository name. Write it as owner/name.",
    "broken": "tests/broken: the Hub is out of order (500). Run `dvc repro` again later.",
    "busy": "tests/busy: the Hub asks for a pause (429). Wait some minutes.",
    "stuck": f"tests/stuck: {SLOW}",
    "stalled": f"tests/stalled: {SLOW}",
    "nobody": "tests/whole: the Hub does not answer (ConnectError). "
    "Check network and proxy, then run `dvc repro` again.",
    "offline": "tests/whole: not complete in the cache, and HF_HUB_OFFLINE forbids downloads. "
    "Unset HF_HUB_OFFLINE once to fetch the files.",
}
SCRIPT = """
import json, logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from stages.contracts.errors import WeightsError
from stages.families.hub import download_checked
asks, wanted = map(json.loads, sys.argv[1:])
answers = {}
for name, (repository, revision, token) in asks.items():
    os.environ["HF_TOKEN"] = token
    try:
        answers[name] = str(download_checked(repository, revision, wanted).folder)
    except WeightsError as error:
        traceback.print_exc()
        answers[name] = "\\n".join(map(str, error.problems))
print(json.dumps(answers))
"""

Ask = tuple[str, str, str]
ONE: dict[str, Ask] = {"whole": ("tests/whole", REVISION, "")}


@dataclass(frozen=True)
class Asked:
    """What child processes got and printed, what the Hub saw of it, and where files went."""

    answers: dict[str, str]
    printed: str
    served: Served
    source: Path
    home: Path


def start(
    asks: dict[str, Ask], home: Path, wanted: list[str] = WANTED, **environment: str
) -> subprocess.Popen[str]:
    """Start a child that downloads."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(asks), json.dumps(wanted)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_VERBOSITY": "debug",
            "HF_DEBUG": "1",
            **environment,
        },
    )


def end(child: subprocess.Popen[str]) -> tuple[dict[str, str], str]:
    """Return a child's answers and all that it printed."""
    stdout, stderr = child.communicate(timeout=300)
    assert child.returncode == 0, stderr
    answers: dict[str, str] = json.loads(stdout)
    return answers, stdout + stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """All requests, made once."""
    source = tmp_path_factory.mktemp("source")
    (source / "model_index.json").write_text('{"a": 1}')
    (source / "part").mkdir()
    (source / LARGE).write_bytes(os.urandom(FILE_BYTES))
    (source / "part" / "model.bin").write_bytes(b"pickle")
    home = tmp_path_factory.mktemp("home")
    impatient = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    with hub(source) as (address, served):
        children = [
            start({name: ask}, home, HF_ENDPOINT=address, **impatient)
            for name, ask in SLOW_ASKS.items()
        ]
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        children.append(start({"nobody": ONE["whole"]}, elsewhere, HF_ENDPOINT=NOBODY))
        children.append(start({"offline": ONE["whole"]}, elsewhere, HF_HUB_OFFLINE="1"))
        children.append(start(ASKS, home, HF_ENDPOINT=address))
        ended = [end(child) for child in children]
        answers = {name: answer for found, _ in ended for name, answer in found.items()}
        yield Asked(answers, "".join(text for _, text in ended), served, source, home)


NOBODY = "http://127.0.0.1:9"


def test_wanted_files_arrive_whole(asked: Asked) -> None:
    """What was asked for is there to the byte, and nothing else."""
    folder = Path(asked.answers["whole"])
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"model_index.json", LARGE}
    for name in found:
        assert (folder / name).read_bytes() == (asked.source / name).read_bytes()


def test_what_is_there_is_not_fetched_again(asked: Asked) -> None:
    """The second request for the same files sends no byte of them."""
    assert asked.answers["again"] == asked.answers["whole"]
    assert asked.served.body_bytes[f"tests/whole/{LARGE}"] == FILE_BYTES


def test_cut_download_resumes(asked: Asked) -> None:
    """A connection cut at half the file costs the other half, not the whole file again.

    huggingface_hub writes pieces of 10 MiB: what it has of an unfinished piece is asked for again.
    """
    folder = Path(asked.answers["cut"])
    assert (folder / LARGE).read_bytes() == (asked.source / LARGE).read_bytes()
    key = f"tests/cut/{LARGE}"
    assert [wanted for name, wanted in asked.served.ranges if name == key] == [
        f"bytes={PIECE_BYTES}-"
    ]
    assert asked.served.body_bytes[key] == FILE_BYTES // 2 + (FILE_BYTES - PIECE_BYTES)


def test_redirects_are_followed_without_the_token(asked: Asked) -> None:
    """Large files lie on another host, which is no business of the token."""
    folder = Path(asked.answers["moved"])
    assert (folder / LARGE).read_bytes() == (asked.source / LARGE).read_bytes()
    assert asked.served.storage_tokens == [""]


def test_slow_server_shows_progress(asked: Asked) -> None:
    """A log says how far a download is, also where no bar can be drawn."""
    folder = Path(asked.answers["slow"])
    assert (folder / LARGE).read_bytes() == (asked.source / LARGE).read_bytes()
    assert re.search(r"downloaded 0\.010 GB of 0\.021 GB, .* GB/s, \d+ s left", asked.printed)
    assert "downloaded 0.021 GB of 0.021 GB" in asked.printed


def test_broken_file_is_fetched_once_more(asked: Asked) -> None:
    """A flipped bit on the way costs a second download, and no one notices."""
    folder = Path(asked.answers["altered once"])
    assert (folder / LARGE).read_bytes() == (asked.source / LARGE).read_bytes()
    assert asked.served.bodies[f"tests/altered-once/{LARGE}"] == 2


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [("altered", LARGE, "SHA-256"), ("altered small", "model_index.json", "git hash")],
)
def test_file_that_arrives_broken_twice_is_refused(
    asked: Asked, name: str, file: str, kind: str
) -> None:
    """Both hashes are in the message, and the broken file is not left in the cache."""
    repository = ASKS[name][0]
    pattern = (
        rf"{repository}/{file}: arrived broken twice \(SHA-256 [0-9a-f]{{64}}, the Hub states "
        rf"{kind} [0-9a-f]{{40,64}}\)\. Run `dvc repro` again later, and check proxy and disk; "
        r"the broken file is removed\."
    )
    assert re.fullmatch(pattern, asked.answers[name])
    assert asked.served.bodies[f"{repository}/{file}"] == 2
    cache = asked.home / "hub" / f"models--{repository.replace('/', '--')}"
    assert not list((cache / "snapshots").rglob(Path(file).name))
    assert not [path for path in (cache / "blobs").iterdir() if path.name in asked.answers[name]]


def test_full_disk_is_seen_before_the_first_byte(asked: Asked) -> None:
    """Needed, free and where: the listing's sizes against the disk of the cache."""
    pattern = (
        rf"tests/huge: needs 2000000001\.1 GB in {re.escape(str(asked.home / 'hub'))}, "
        r"where \d+\.\d+ GB are free\. Free space, or set HF_HOME to a folder on another disk\."
    )
    assert re.fullmatch(pattern, asked.answers["huge"])
    assert not [key for key in asked.served.bodies if key.startswith("tests/huge")]


@pytest.mark.parametrize("name", MESSAGES)
def test_each_failure_has_its_message(asked: Asked, name: str) -> None:
    """No 403 is shown as "no config.json": each cause has its own words and its own way out."""
    assert asked.answers[name] == MESSAGES[name]


def test_no_token_is_printed(asked: Asked) -> None:
    """Not in messages, tracebacks or debug logs, whole or in part."""
    assert "tests/gated" in asked.printed
    assert "Traceback" in asked.printed
    for token in TOKENS:
        assert token not in asked.printed
    assert "torn_secret" not in asked.printed


def test_complete_cache_needs_no_network(asked: Asked) -> None:
    """With nobody at the address, and with downloads forbidden: no request, the same folder."""
    alone = start(ONE, asked.home, HF_ENDPOINT=NOBODY)
    offline = start(ONE, asked.home, HF_HUB_OFFLINE="1")
    for child in (alone, offline):
        answers, printed = end(child)
        assert answers == {"whole": asked.answers["whole"]}
        assert "Retrying" not in printed


def test_cache_of_an_older_client_is_used_offline(asked: Asked, tmp_path: Path) -> None:
    """Without the listing that only newer clients leave, what is there is taken."""
    cache = tmp_path / "hub"
    cache.mkdir()
    name = "models--tests--whole"
    (cache / name).symlink_to(asked.home / "hub" / name)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", f"{cache / name}/.", copy], check=True)
    (cache / name).unlink()
    copy.rename(cache / name)
    for listing in (cache / name / "trees").iterdir():
        listing.unlink()
    answers, _ = end(start(ONE, tmp_path, HF_HUB_OFFLINE="1"))
    assert answers["whole"].startswith(str(cache))


def test_damaged_cache_is_mended(asked: Asked, tmp_path: Path) -> None:
    """A file that was cut or changed on the disk is fetched again, alone."""
    home = tmp_path / "home"
    with hub(asked.source) as (address, served):
        folder = Path(end(start(ONE, home, HF_ENDPOINT=address))[0]["whole"])
        large = (folder / LARGE).resolve()
        for damage in (lambda data: data[:-9], lambda data: b"x" + data[1:]):
            large.write_bytes(damage((asked.source / LARGE).read_bytes()))
            end(start(ONE, home, HF_ENDPOINT=address))
            assert large.read_bytes() == (asked.source / LARGE).read_bytes()
        assert served.bodies == {f"tests/whole/{LARGE}": 3, "tests/whole/model_index.json": 1}


def test_missing_files_are_named(asked: Asked, tmp_path: Path) -> None:
    """A path that must be there, and patterns that nothing matches."""
    with hub(asked.source) as (address, _):
        children = [
            start(ONE, tmp_path / str(index), wanted, HF_ENDPOINT=address)
            for index, wanted in enumerate((["a/config.json", "*.json"], ["*.onnx", "*.pb"]))
        ]
        named, unmatched = (end(child)[0]["whole"] for child in children)
    where = f"not in the repository at revision {REVISION}. "
    look = f"Look at https://huggingface.co/tests/whole/tree/{REVISION}."
    assert named == f"tests/whole/a/config.json: {where}{look}"
    assert unmatched == f"tests/whole/*.onnx or *.pb: {where}{look}"


def test_write_errors_of_the_disk_are_told_apart() -> None:
    """The disk may fill up while others write to it: a real error of a full device."""
    from stages.families.hub_problems import cache_folder, hub_problem

    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "w") as full:
        full.write("x" * 100_000)
    assert str(hub_problem(caught.value, "a/b", REVISION)) == (
        f"a/b: no space left in {cache_folder()}. Free space, or set HF_HOME to another disk."
    )
    denied = PermissionError(13, "Permission denied")
    assert "may not write into" in str(hub_problem(denied, "a/b", REVISION))
