"""The image's build steps, executed, and the pipeline run in what they make; without Docker.

Needs root, debootstrap and the right to mount. Where they are missing the tests are skipped, unless
BLOCKLENS_REQUIRE_IMAGE is set, as it is in .github/workflows/ci.yml.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.chroot import Image, attempt, can_build, enter
from tests.containers.rootfs import Builder, layer_sizes
from tests.small_run import stages_run

ROOT = Path(__file__).parents[2]
SECRET = "canary-of-the-test"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "BLOCKLENS_REQUIRE_IMAGE" not in os.environ and not can_build(),
        reason="building the image without Docker needs root, debootstrap and the right to mount",
    ),
]


@dataclass(frozen=True)
class Container:
    """The image and the two volumes of one container, seen from outside."""

    image: Image
    data: Path
    cache: Path

    @property
    def volumes(self) -> dict[str, Path]:
        """Return where the volumes are inside."""
        return {"/data": self.data, "/cache": self.cache}


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The target cpu, built step by step."""
    # Short paths: the kernel takes one page of mount options for all layers together.
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        yield Builder(ROOT / "docker" / "Dockerfile", ROOT, Path(folder)).build("cpu")


@pytest.fixture(scope="module")
def container(image: Image) -> Iterator[Container]:
    """A container that has run the first stages with its own command's entry point."""
    with empty_volumes(image) as started:
        assert attempt(image, image.healthcheck, volumes=started.volumes).returncode == 1
        (started.data / "left-behind").touch()
        refused = start(started, "true")
        assert (refused["code"], "no dvc.yaml" in refused["said"]) == (64, True), refused
        (started.data / "left-behind").unlink()
        done = start(started, "python -m stages.runtime.machine && dvc repro fetch prepare")
        assert done["code"] == 0, done["said"]
        for stage in ("fetch", "prepare"):
            assert f"Running stage '{stage}'" in done["said"]
        yield started


@contextmanager
def empty_volumes(image: Image) -> Iterator[Container]:
    """A container that has not started yet, its volumes as Docker makes them."""
    with tempfile.TemporaryDirectory(prefix="volumes-") as folder:
        Path(folder).chmod(0o755)
        made = Container(image, Path(folder) / "data", Path(folder) / "cache")
        for volume in (made.data, made.cache):
            volume.mkdir()
            shutil.chown(volume, 10001, 10001)
            volume.chmod(0o1777)
        yield made


def start(container: Container, command: str, **environment: str) -> dict[str, Any]:
    """Start the container with a shell command: exit code, and all that it said."""
    program = [*container.image.entrypoint, "sh", "-c", command]
    done = attempt(container.image, program, volumes=container.volumes, environment=environment)
    return {"code": done.returncode, "said": done.stdout + done.stderr}


def test_the_pipeline_runs_from_inside_and_gives_the_committed_result(
    container: Container,
) -> None:
    """As user 10001 on a read-only root, from the checkout that is built in: the same bytes."""
    for name in ("fetch/manifest.json", "prepare/metrics.json"):
        inside = container.data / "data" / name
        assert inside.read_bytes() == (ROOT / "data" / name).read_bytes()
        assert (inside.stat().st_uid, inside.stat().st_gid) == (10001, 10001)
    again = start(container, "dvc repro fetch prepare")
    assert again["code"] == 0, again["said"]
    assert "Running stage" not in again["said"]
    old, new = (
        yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        for folder in (ROOT, container.data)
    )
    assert {name: new[name] for name in ("fetch", "prepare")} == {
        name: old[name] for name in ("fetch", "prepare")
    }


def test_a_whole_small_run_from_inside_gives_the_bytes_of_one_outside(
    image: Image, small_run: Path
) -> None:
    """All stages to the report, by another Python on another system: every output has its hash."""
    with empty_volumes(image) as container:
        assert start(container, "true")["code"] == 0
        shutil.copyfile(small_run / "params.yaml", container.data / "params.yaml")
        threads = {k: os.environ[k] for k in ("OMP_NUM_THREADS",) if k in os.environ}
        done = start(container, "dvc repro", **threads)
        assert done["code"] == 0, done["said"]
        assert len(stages_run(done["said"])) == 11
        outside, inside = (
            yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
            for folder in (small_run, container.data)
        )
        assert {name: stage["outs"] for name, stage in inside.items()} == {
            name: stage["outs"] for name, stage in outside.items()
        }
        assert (container.data / "data" / "report" / "index.html").is_file()


def test_every_package_is_locked_and_none_is_for_tests_alone(container: Container) -> None:
    """Whatever pip chose by itself would be another image tomorrow."""
    program = (
        "import importlib.metadata as m, json, torch;"
        "print(json.dumps([[d.name, d.version] for d in m.distributions()]), torch.version.cuda)"
    )
    listed, _, cuda = enter(container.image, ["python", "-c", program]).strip().rpartition(" ")
    assert cuda == "None"
    lock = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("requirements.lock", "requirements-mixer.lock")
    )
    locked = {
        _normal(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.M)
    }
    installed = {_normal(name): version.partition("+")[0] for name, version in json.loads(listed)}
    assert len(installed) > 100
    assert {k: v for k, v in installed.items() if locked.get(k) != v} == {}
    assert not {"pytest", "mypy", "ruff", "moto", "pip"} & set(installed)


def test_one_container_at_a_time_has_a_checkout(container: Container) -> None:
    """DVC knows its locks by process id, which another container cannot judge."""
    lock = container.data / ".blocklens" / "container.lock"
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = start(container, "true")
    assert refused["code"] == 64
    assert "another container uses the checkout" in refused["said"]
    stale = container.data / ".dvc" / "tmp" / "rwlock"
    stale.write_text(json.dumps({"dvc.lock": {"write": {"pid": 1, "cmd": "dvc repro"}}}))
    assert start(container, "test ! -e .dvc/tmp/rwlock")["code"] == 0
    assert not stale.exists()


def test_another_user_is_told_what_to_do(container: Container, tmp_path: Path) -> None:
    """A mounted folder of somebody else's is the most usual mistake with a fixed user."""
    program = [*container.image.entrypoint, "true"]
    folder = tmp_path / "own"
    folder.mkdir(mode=0o755)
    done = attempt(container.image, program, volumes={"/data": folder, "/cache": container.cache})
    assert done.returncode == 64
    assert "/data is not writable for user 10001" in done.stderr
    assert '--user "$(id -u):$(id -g)"' in done.stderr
    shutil.chown(folder, 4321, 4321)
    volumes = {"/data": folder, "/cache": container.cache}
    shown = [
        "sh",
        "-c",
        "id -u; git log -1 --format=%s; python -c 'import getpass as g; g.getuser()'",
    ]
    said = enter(
        container.image, [*program[:-1], *shown], volumes=volumes, user="4321:4321",
        environment={"HOME": "/cache/home-4321"},
    )  # fmt: skip
    assert said.splitlines() == ["4321", "Blocklens as built into this image"]


def test_health_follows_what_the_container_is_for(container: Container) -> None:
    """Without an address the checkout; with one, whether somebody answers there."""
    image, volumes = container.image, container.volumes
    assert attempt(image, image.healthcheck, volumes=volumes).returncode == 0
    served = (
        "python3 -m http.server 8000 --bind 127.0.0.1 --directory /data/data/report & "
        "for i in $(seq 100); do healthcheck http://127.0.0.1:8000/ && exit 0; sleep 0.1; done; "
        "exit 1"
    )
    assert attempt(image, ["sh", "-c", served], volumes=volumes).returncode == 0
    nobody = attempt(image, ["healthcheck", "http://127.0.0.1:1/"], volumes=volumes)
    assert nobody.returncode == 1
    assert "Connection refused" in nobody.stderr


def test_the_mixer_is_served_from_inside(container: Container) -> None:
    """Its page answers there, as another user than root; a request for another name does not."""
    program = """
import urllib.error, urllib.request, gradio as gr
from mixer.server import launch
with gr.Blocks() as page:
    gr.Markdown("here")
launch(page, "127.0.0.1", 7860)
print(urllib.request.urlopen("http://127.0.0.1:7860/").status)
try:
    foreign = urllib.request.Request("http://127.0.0.1:7860/", headers={"Host": "evil.example"})
    urllib.request.urlopen(foreign)
except urllib.error.HTTPError as error:
    print(error.code)
page.close()
"""
    said = enter(
        container.image, ["python", "-c", program], volumes=container.volumes,
        environment={"BLOCKLENS_MIXER_IN_CONTAINER": "1", "GRADIO_TEMP_DIR": "/tmp/mixer"},
    )  # fmt: skip
    assert [line for line in said.splitlines() if line.isdecimal()] == ["200", "400"]


def test_the_token_of_a_run_is_read_and_stays_nowhere(container: Container) -> None:
    """From the environment or from a file, as huggingface_hub finds it; an empty file is none."""
    ask = "python -c 'import huggingface_hub as h; print(h.get_token())'"
    given = start(container, ask, HF_TOKEN=SECRET)
    assert given["said"].splitlines()[-1] == SECRET
    (container.cache / "token").write_text(SECRET)
    named = start(container, ask, HF_TOKEN_PATH="/cache/token")
    assert named["said"].splitlines()[-1] == SECRET
    (container.cache / "token").write_text("")
    empty = start(container, ask, HF_TOKEN_PATH="/cache/token")
    assert empty["said"].splitlines()[-1] == "None"
    for folder in (container.data, container.cache):
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_layers_are_what_the_readme_says(image: Image) -> None:
    """Sizes in docker/README.md are of a build; a tenth more or less is another image."""
    readme = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    said = [float(text) for text in re.findall(r"^\| .* \| ([\d.]+) MB \|$", readme, re.M)]
    built = layer_sizes(image)[1:]  # the base is what its registry says
    large = [size / 1e6 for _, size in built if size > 1e6]
    assert large == pytest.approx(said, rel=0.1), built


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
