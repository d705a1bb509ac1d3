"""The Dockerfile, as far as it can be judged without building it; test_image.py builds it."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.containers.dockerfile import ancestry, read_dockerfile, variables, words
from tests.containers.rootfs import context_files

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")
ARGUMENTS, STAGES = read_dockerfile(DOCKERFILE)
TARGETS = ("cpu", "cuda")
NEEDED = (
    "dvc.yaml", "dvc.lock", "params.yaml", "prefect.yaml", "LICENSE", "requirements.lock",
    "requirements-mixer.lock",
)  # fmt: skip
"""And all of stages/, flows/, mixer/, presets/, data/demo/ and data/nano-flux/."""


def locked(name: str) -> str:
    """Return the version of a package in requirements.lock."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    match = re.search(rf"^{re.escape(name)}==(\S+)$", lock, flags=re.MULTILINE)
    assert match is not None, name
    return match[1]


def test_hadolint_finds_nothing() -> None:
    """Every exception is written beside the line that it is for, with its reason."""
    program = str(Path(sys.executable).parent / "hadolint")
    done = subprocess.run(
        [program, "--failure-threshold", "style", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_stage_starts_from_one_pinned_image() -> None:
    """A tag can be moved to other bytes; a digest cannot."""
    assert re.fullmatch(r"debian:[\w.-]+@sha256:[0-9a-f]{64}", ARGUMENTS["BASE"])
    assert len(STAGES) == 8
    for name in STAGES:
        assert ancestry(STAGES, name)[0].base == "${BASE}"


@pytest.mark.parametrize("target", TARGETS)
def test_targets_run_as_a_fixed_user_who_is_not_root(target: str) -> None:
    """A number: what checks `runAsNonRoot` knows no names. Nothing is root again later."""
    users = [each.rest for stage in ancestry(STAGES, target) for each in stage.of("USER")]
    assert users == ["10001:10001"]


@pytest.mark.parametrize("target", TARGETS)
def test_targets_have_an_init_a_health_check_and_volumes(target: str) -> None:
    """What Docker has to know: signals, health, and which folders outlive the container."""
    said = {
        each.word: each.rest for stage in ancestry(STAGES, target) for each in stage.instructions
    }
    assert words(said["ENTRYPOINT"])[0] == "tini"
    assert said["HEALTHCHECK"].endswith('CMD ["healthcheck"]')
    assert words(said["VOLUME"]) == ["/data", "/cache", "/locks"]
    assert said["STOPSIGNAL"] == "SIGINT"


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_is_kept_is_kept_in_a_volume(target: str) -> None:
    """The root is read-only in compose.yaml, and a cache in the image would be lost with it."""
    environment: dict[str, str] = {}
    for stage in ancestry(STAGES, target):
        for each in stage.of("ENV"):
            environment |= variables(each.rest)
    for name in ("HOME", "HF_HOME", "DVC_SITE_CACHE_DIR", "PREFECT_HOME"):
        assert environment[name].startswith("/cache/"), name
    telemetry = {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # it asks amplitude.com
    }
    assert telemetry.items() <= environment.items()


def test_no_secret_can_be_in_a_layer() -> None:
    """Build arguments and environment are in the image's history for everybody who has it."""
    declared = re.findall(r"^\s*(?:ARG|ENV)\s+(\w+)|^\s+(\w+)=", TEXT, flags=re.MULTILINE)
    names = {first or second for first, second in declared}
    assert {"BASE", "CUDA", "HF_HOME"} <= names
    assert not [each for each in names if re.search("TOKEN|SECRET|PASSWORD|KEY", each)]
    assert not re.search(r"hf_[A-Za-z0-9]{20}|https?://[^/\s]*@", TEXT)


def test_torch_is_one_version_in_two_builds_and_all_else_is_locked() -> None:
    """Each image takes torch from the index of its build, and the rest under the one lock."""
    for target, index in (("cpu", "whl/cpu "), ("cuda", 'whl/${CUDA}" ')):
        (run,) = STAGES[f"packages-{target}"].of("RUN")
        commands = [part for part in run.rest.split("&&") if "pip install" in part]
        assert len(commands) == 3
        assert f"download.pytorch.org/{index}" in commands[0]
        assert "--no-deps" in commands[0]
        assert "grep '^torch==' requirements.lock" in commands[0]
        assert "--constraint requirements.lock" in commands[1]
        assert not any("index" in command for command in commands[1:])
        assert "--no-deps --constraint requirements.lock" in commands[2]
        assert "--requirement requirements-mixer.lock" in commands[2]
    assert locked("torch") == "2.13.0"
    (cuda,) = STAGES["packages-cuda"].of("ARG")
    assert re.fullmatch(r"CUDA=cu1\d\d", cuda.rest)


def test_the_requirements_are_those_of_a_run() -> None:
    """Extras that are asked for come in, what only tests need does not."""
    command = [sys.executable, "docker/requirements.py", "pyproject.toml", "orchestration", "gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    chosen = [re.split(r"[\[<>=]", line)[0] for line in done.stdout.splitlines()]
    assert {"torch", "prefect", "bitsandbytes"} <= set(chosen)
    assert not {"pytest", "moto", "dvc-s3"} & set(chosen)
    command[-1] = "nosuch"
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1


def test_the_mixer_finds_all_that_it_needs() -> None:
    """It is installed without dependencies: each of them has to be asked for by somebody else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (run,) = STAGES["packages-cpu"].of("RUN")
    chosen = re.search(r"pyproject\.toml ([\w ]+) >", run.rest)
    assert chosen is not None
    asked = [
        *project["dependencies"],
        *(each for name in chosen[1].split() for each in extras[name]),
    ]
    lines = (ROOT / "requirements-mixer.lock").read_text(encoding="utf-8").splitlines()
    pinned = {normal(Requirement(line).name) for line in lines if line and line[0] != "#"}
    named = {word for word in run.rest.split() if word == "python-multipart"}
    assert needed_by(["gradio"]) <= needed_by(asked) | pinned | named
    assert {"gradio", "gradio-client"} <= pinned


def needed_by(asked: Iterable[str]) -> set[str]:
    """Return the names of what some requirements bring in, as installed here."""
    left = [Requirement(text) for text in asked]
    found: set[tuple[str, frozenset[str]]] = set()
    while left:
        one = left.pop()
        key = (normal(one.name), frozenset(one.extras))
        if key in found:
            continue
        found.add(key)
        for text in importlib.metadata.requires(one.name) or []:
            further = Requirement(text)
            extras = [{"extra": extra} for extra in ("", *one.extras)]
            if further.marker is None or any(map(further.marker.evaluate, extras)):
                left.append(further)
    return {name for name, _ in found}


def normal(name: str) -> str:
    """Return a package's name in its one form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_build_sees_what_is_needed_and_nothing_else(tmp_path: Path) -> None:
    """Keys, caches and pictures of yours stay out by being nowhere listed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    context = tmp_path / "context"
    secrets = (
        "docker/.env",
        ".env",
        "data/mine/face.png",
        "data/weights/flux.safetensors",
        "id_rsa",
    )
    strays = (".dvc/config.local", ".dvc/cache/files/aa", ".git/config", "data/train/x.png")
    compiled = ("stages/__pycache__/fetch.pyc",)
    for name in (*filter(None, listed), *secrets, *strays, *compiled):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_bytes(b"")
    (context / ".dockerignore").write_text((ROOT / ".dockerignore").read_text(encoding="utf-8"))
    context_files(context, tmp_path / "seen")
    seen = {
        path.relative_to(tmp_path / "seen").as_posix()
        for path in (tmp_path / "seen").rglob("*")
        if path.is_file()
    }
    assert seen <= set(listed), sorted(seen - set(listed))
    folders = ("stages/", "flows/", "mixer/", "presets/", "data/demo/", "data/nano-flux/")
    needed = {name for name in listed if name.startswith(folders)} | set(NEEDED)
    assert len(needed) > 100
    assert needed <= seen, sorted(needed - seen)
    assert not [name for name in seen if name.startswith(("tests/", "docs/", ".github/"))]
