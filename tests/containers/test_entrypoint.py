"""docker/entrypoint.sh by itself: the same lines, with the test's folders for the image's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.repositories import git

SCRIPT = Path(__file__).parents[2] / "docker" / "entrypoint.sh"
PLACES = ("/usr/share/blocklens.git", "/data", "/cache")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with an image's checkout, empty volumes, and the entry point that knows them."""
    build(tmp_path, "first")
    for name in ("data", "cache"):
        (tmp_path / name).mkdir()
    text = SCRIPT.read_text(encoding="utf-8")
    for place in PLACES:
        text = text.replace(place, f"{tmp_path}/{Path(place).name}")
    (tmp_path / "entrypoint.sh").write_text(text, encoding="utf-8")
    return tmp_path


def build(folder: Path, code: str) -> None:
    """Put a checkout of one commit where an image has it, instead of the one that is there."""
    source = folder / f"source-{code}"
    source.mkdir()
    git(source, "init", "--quiet", "--initial-branch=main")
    (source / "dvc.yaml").write_text(f"# {code}\n")
    git(source, "add", "dvc.yaml")
    git(source, "commit", "--quiet", "--message", "Blocklens as built into this image")
    shutil.rmtree(folder / "blocklens.git", ignore_errors=True)
    git(folder, "clone", "--quiet", "--bare", str(source), str(folder / "blocklens.git"))


def start(image: Path, command: str = "true") -> subprocess.CompletedProcess[str]:
    """Run a command in the image's way."""
    return subprocess.run(
        ["sh", str(image / "entrypoint.sh"), "sh", "-c", command],
        cwd=image / "data",
        env={**os.environ, "HOME": str(image / "cache" / "home")},
        capture_output=True,
        text=True,
    )


def test_an_empty_volume_gets_the_images_checkout(image: Path) -> None:
    """And what lies there alone, such as a working folder that was made too early, is refused."""
    (image / "data" / "work").mkdir()
    refused = start(image)
    assert refused.returncode == 64
    assert "no dvc.yaml" in refused.stderr
    (image / "data" / "work").rmdir()
    started = start(image, "cat dvc.yaml")
    assert (started.returncode, started.stdout, started.stderr) == (0, "# first\n", "")


def test_a_volume_of_another_image_is_said_and_can_be_brought_up_to_date(image: Path) -> None:
    """By the command of docker/README.md; what was there stays on its branch."""
    start(image)
    build(image, "second")
    old = start(image, "cat dvc.yaml")
    assert (old.returncode, old.stdout) == (0, "# first\n")
    assert "is of another image" in old.stderr
    readme = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    sh -c '(git fetch[^']+)'$", readme, re.M)
    taken = start(image, command)
    assert taken.returncode == 0, taken.stderr
    new = start(image, "cat dvc.yaml && git show main:dvc.yaml")
    assert (new.stdout, new.stderr) == ("# second\n# first\n", "")
    git(image / "data", "commit", "--quiet", "--allow-empty", "--message", "mine")
    assert start(image).stderr == ""
    mine = git(image / "data", "rev-parse", "HEAD")
    build(image, "third")
    taken = start(image, command)
    assert taken.returncode == 0, taken.stderr
    assert start(image, "cat dvc.yaml").stdout == "# third\n"
    assert git(image / "data", "branch", "--contains", mine), "a commit of the second is lost"


def test_a_checkout_of_ones_own_is_left_alone(image: Path) -> None:
    """It has other code than the image on purpose."""
    git(image, "clone", "--quiet", str(image / "source-first"), str(image / "data"))
    build(image, "second")
    assert start(image).stderr == ""
