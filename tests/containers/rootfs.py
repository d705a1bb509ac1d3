"""Build a Dockerfile's target without Docker.

The base is a Debian root by debootstrap, of the suite that the base image has. Every RUN and COPY
makes a layer of its own, as in Docker, and no instruction is skipped or changed. Needs root.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from docker.utils.build import exclude_paths

from tests.containers.chroot import Image, check, enter, in_namespace, merged, mount_command
from tests.containers.dockerfile import (
    BuildStage,
    Instruction,
    ancestry,
    read_dockerfile,
    variables,
    words,
)

DEBIAN = "http://deb.debian.org"
APT_CLEANS = """\
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
"""Both are in Debian's images: github.com/debuerreotype/debuerreotype, scripts/."""


@dataclass
class Builder:
    """Builds the targets of one Dockerfile in `folder`."""

    dockerfile: Path
    context: Path
    folder: Path
    built: dict[str, Image] = field(default_factory=dict)

    def build(self, target: str) -> Image:
        """Return the image of a target; a failing instruction fails with its output."""
        arguments, stages = read_dockerfile(self.dockerfile)
        for stage in ancestry(stages, target):
            if stage.name not in self.built:
                self.built[stage.name] = self._build_stage(stage, arguments)
        return self.built[target]

    def _build_stage(self, stage: BuildStage, arguments: Mapping[str, str]) -> Image:
        if stage.base in self.built:
            parent = self.built[stage.base]
            image = Image(
                [*parent.layers],
                {**parent.environment},
                parent.user,
                parent.directory,
                [*parent.entrypoint],
                [*parent.command],
                [*parent.healthcheck],
                {**parent.steps},
            )
        else:
            image = Image([debian_root(_suite(arguments["BASE"]), self.folder / "0")])
            image.steps[image.layers[0]] = f"FROM {stage.base}"
        for instruction in stage.instructions:
            self._apply(image, instruction)
        return image

    def _apply(self, image: Image, instruction: Instruction) -> None:
        rest = instruction.rest
        match instruction.word:
            case "RUN":
                layer = self._new_layer(image, f"RUN {rest}")
                enter(image, ["/bin/sh", "-c", rest], upper=layer)
            case "COPY":
                self._copy(image, instruction)
            case "ENV":
                for name, value in variables(rest).items():
                    image.environment[name] = value.replace("$PATH", image.environment["PATH"])
            case "ARG":
                name, _, value = rest.partition("=")
                image.environment.setdefault(name, value)
            case "USER":
                image.user = rest
            case "WORKDIR":
                image.directory = rest
            case "ENTRYPOINT":
                image.entrypoint = words(rest)
            case "CMD":
                image.command = words(rest)
            case "HEALTHCHECK":
                image.healthcheck = words(rest.partition("CMD ")[2])
            case "VOLUME" | "STOPSIGNAL":
                pass  # said to Docker, for `docker run` and `docker stop`
            case _:
                raise AssertionError(instruction)

    def _copy(self, image: Image, instruction: Instruction) -> None:
        *sources, target = words(instruction.rest)
        layer = self._new_layer(image, f"COPY {instruction.rest}")
        place = layer / (Path(image.directory) / target).relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if (origin := instruction.flags.get("from")) is not None:
            self.build(origin)
            assert len(sources) == 1
            script = f"cp --archive {merged(layer)}{sources[0]} {place}"
            in_namespace([mount_command(self.built[origin].layers, merged(layer)), script])
            return
        for source in sources:
            self._copy_in(source, place, several=len(sources) > 1 or target.endswith("/"))
        if mode := instruction.flags.get("chmod"):
            place.chmod(int(mode, 8))

    def _copy_in(self, source: str, place: Path, *, several: bool) -> None:
        if source == ".":
            context_files(self.context, place)
        elif several:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.context / source, place / Path(source).name)
        else:
            shutil.copy2(self.context / source, place)

    def _new_layer(self, image: Image, step: str) -> Path:
        layer = self.folder / str(len(list(self.folder.glob("[0-9]*"))))
        layer.mkdir()
        merged(layer).mkdir()
        (layer.parent / f"work-{layer.name}").mkdir()
        image.layers.append(layer)
        image.steps[layer] = step
        return layer


def context_files(context: Path, place: Path) -> None:
    """Copy into `place` what .dockerignore lets into a build."""
    patterns = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
    chosen = [each for each in patterns if each and not each.startswith("#")]
    # Docker's client sends .dockerignore itself too, for its server to read and to take out.
    for name in sorted(exclude_paths(str(context), chosen) - {".dockerignore"}):
        if (context / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(context / name, place / name)


def debian_root(suite: str, folder: Path) -> Path:
    """Return a minimal Debian with the package sources that the image of that suite has."""
    folder.mkdir(parents=True)
    command = ["debootstrap", "--variant=minbase", suite, str(folder), f"{DEBIAN}/debian"]
    check(subprocess.run(command, capture_output=True, text=True, check=False))
    (folder / "etc/apt/sources.list").write_text(
        f"deb {DEBIAN}/debian {suite} main\n"
        f"deb {DEBIAN}/debian {suite}-updates main\n"
        f"deb {DEBIAN}/debian-security {suite}-security main\n"
    )
    (folder / "etc/hosts").write_text("127.0.0.1\tlocalhost\n")  # every engine gives one
    (folder / "etc/apt/apt.conf.d/docker-clean").write_text(APT_CLEANS)
    (folder / "etc/dpkg/dpkg.cfg.d/docker").write_text(SLIM)
    subprocess.run(["chroot", folder, "apt-get", "clean"], check=True)
    return folder


def layer_sizes(image: Image) -> list[tuple[str, int]]:
    """Return each step of the final stage that added files, with their bytes."""
    sizes = []
    for layer in image.layers:
        files = [path for path in layer.rglob("*") if path.is_file() and not path.is_symlink()]
        links = {(path.stat().st_dev, path.stat().st_ino): path.stat().st_size for path in files}
        sizes.append((image.steps[layer], sum(links.values())))
    return sizes


def _suite(image: str) -> str:
    match = re.match(r"debian:([a-z]+)-\d+-slim@sha256:", image)
    assert match is not None, image
    return match[1]
