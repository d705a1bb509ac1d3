"""`fetch` from a Hub on loopback: the files of the family, and one message where there are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from stages.families.weights import read_manifest
from stages.runtime.files import sha256_file
from tests.families.hub_server import NAMES, REVISION, hub
from tests.stages.fetching import run_fetch, write_params

NOBODY = "http://127.0.0.1:9"
WHOLE = {"repository": "tests/whole", "revision": REVISION}


@pytest.fixture
def source(nano_flux: Path, tmp_path: Path) -> Path:
    """What the Hub serves: the embedded model, and files that the family does not need."""
    folder = tmp_path / "source"
    shutil.copytree(nano_flux, folder, ignore=shutil.ignore_patterns("captioner"))
    (folder / "flux1.safetensors").write_bytes(b"the same again")
    (folder / "README.md").write_text("# A model\n")
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"in 16 bits")
    return folder


def test_manifest_is_that_of_the_same_files_in_a_folder(source: Path, tmp_path: Path) -> None:
    """Only the family's files come, each with its hash; the second run asks nobody."""
    params = write_params(tmp_path / "params.yaml", **WHOLE)
    with hub(source) as (address, served):
        done = run_fetch(tmp_path, params, HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    assert "HTTP Request" not in done.stderr
    manifest = read_manifest(tmp_path / "fetch" / "manifest.json")
    assert (manifest.folder, manifest.repository) == (None, "tests/whole")
    assert manifest.revision == REVISION
    names = [file.path for file in manifest.files]
    assert len(names) == 14
    for file in manifest.files:
        assert file.sha256 == sha256_file(source / file.path)
        assert file.size_bytes == (source / file.path).stat().st_size
    assert {key for key, count in served.bodies.items() if count > 0} == {
        f"tests/whole/{name}" for name in names
    }
    first = (tmp_path / "fetch" / "manifest.json").read_bytes()
    again = run_fetch(tmp_path, params, HF_ENDPOINT=NOBODY)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "fetch" / "manifest.json").read_bytes() == first


@pytest.mark.parametrize("name", ["main", "v1.0", REVISION[:7]])
def test_branch_is_refused_with_the_hash_to_write(source: Path, tmp_path: Path, name: str) -> None:
    """A branch, a tag and a short hash: the message has the line to copy."""
    params = write_params(tmp_path / "params.yaml", **WHOLE | {"revision": name})
    with hub(source) as (address, served):
        done = run_fetch(tmp_path, params, HF_ENDPOINT=address)
    assert done.returncode == 1
    assert (
        f"fetch.revision: {name!r} is no commit hash of tests/whole; it stands for {REVISION} now."
        f" Write fetch.revision: {REVISION}.\n"
    ) in done.stderr
    assert len(served.requests) == 1
    assert not (tmp_path / "fetch").exists()
    assert NAMES[name] == REVISION


def test_branch_of_another_section_is_explained_too(source: Path, tmp_path: Path) -> None:
    """A captioner is pinned like a base model, and fetch is the first stage that runs."""
    params = write_params(tmp_path / "params.yaml")
    document = yaml.safe_load(params.read_text(encoding="utf-8"))
    document["caption"] |= {"repository": "tests/whole", "revision": "v1.0"}
    params.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    with hub(source) as (address, _):
        done = run_fetch(tmp_path, params, HF_ENDPOINT=address)
    assert done.returncode == 1
    assert (
        f"caption.revision: 'v1.0' is no commit hash of tests/whole; it stands for {REVISION} now."
        f" Write caption.revision: {REVISION}.\n"
    ) in done.stderr


def test_branch_of_a_training_adapter_is_explained_too(source: Path, tmp_path: Path) -> None:
    """As the preset for FLUX.1-schnell has it: refused with the hash, before hours of training."""
    params = write_params(tmp_path / "params.yaml")
    document = yaml.safe_load(params.read_text(encoding="utf-8"))
    adapter = {"file": "a.safetensors", "repository": "tests/whole", "sha256": None}
    document["train"]["training_adapter"] = {**adapter, "revision": "main"}
    params.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    with hub(source) as (address, _):
        done = run_fetch(tmp_path, params, HF_ENDPOINT=address)
    assert done.returncode == 1
    key = "train.training_adapter.revision"
    assert (
        f"{key}: 'main' is no commit hash of tests/whole; it stands for {REVISION} now."
        f" Write {key}: {REVISION}.\n"
    ) in done.stderr


@pytest.mark.parametrize("repository", ["tests/absent", "tests/stuck", "no//name"])
def test_branch_is_refused_where_the_hub_does_not_say(
    source: Path, tmp_path: Path, repository: str
) -> None:
    """Without an answer the refusal stands as it is, also where the token is torn."""
    params = write_params(
        tmp_path / "params.yaml", repository=repository, revision="main", folder=""
    )
    token = "a b" if repository == "no//name" else ""
    with hub(source) as (address, _):
        done = run_fetch(
            tmp_path, params, HF_ENDPOINT=address, HF_TOKEN=token, HF_HUB_DOWNLOAD_TIMEOUT="1"
        )
    assert done.returncode == 1
    assert "fetch.revision: String should match pattern '^[0-9a-f]{40}$', got 'main'" in done.stderr
    assert "fetch.folder: String should have at least 1 character" in done.stderr
    assert "2 problems" in done.stderr
    assert "Traceback" not in done.stderr


def test_repository_of_pickles_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    """Instead of "no .safetensors": which files are there, and why they will not do."""
    weights = source / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    params = write_params(tmp_path / "params.yaml", **WHOLE)
    with hub(source) as (address, served):
        done = run_fetch(tmp_path, params, HF_ENDPOINT=address)
    assert done.returncode == 1
    assert "text_encoder: holds no .safetensors file" in done.stderr
    assert (
        "tests/whole/text_encoder/pytorch_model.bin: pickled weights, which can run any program "
        "when they are read. It was not downloaded; choose a repository or revision with "
        ".safetensors files.\n"
    ) in done.stderr
    assert not [key for key in served.bodies if key.endswith(".bin")]


def test_repository_with_only_a_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    """No model_index.json, but a .ckpt in the root: the message names both."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "flux.ckpt").write_bytes(b"\x80\x02}q\x00.")
    params = write_params(tmp_path / "params.yaml", **WHOLE)
    with hub(source) as (address, served):
        done = run_fetch(tmp_path, params, HF_ENDPOINT=address)
    assert done.returncode == 1
    assert f"tests/whole/model_index.json: not in the repository at revision {REVISION}" in (
        done.stderr
    )
    assert "tests/whole/flux.ckpt: pickled weights" in done.stderr
    assert not served.bodies


def test_gated_repository_without_token_suggests_an_open_one(source: Path, tmp_path: Path) -> None:
    """Flex.1-alpha is under Apache-2.0 and not gated: a way on for a user without a token."""
    params = write_params(tmp_path / "params.yaml", **WHOLE | {"repository": "tests/gated"})
    with hub(source) as (address, _):
        done = run_fetch(tmp_path, params, HF_ENDPOINT=address)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "fetch: tests/gated cannot be downloaded (1 problem):",
        "  - tests/gated: gated, and there is no token. Accept the licence at "
        "https://huggingface.co/tests/gated and set HF_TOKEN or run `hf auth login`; "
        "ostris/Flex.1-alpha (Apache-2.0) needs no token.",
    ]
