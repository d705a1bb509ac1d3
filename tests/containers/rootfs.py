"""Build a Dockerfile's target without Docker, and run commands in it.

The base is a Debian root by debootstrap, of the suite that the base image has. Every RUN and COPY
makes a layer of its own with overlayfs, as Docker does, and runs in a chroot with its own mounts
and process ids: no instruction is skipped or changed. Needs root.

What differs from Docker: no user namespace, no seccomp, no limits; the network is the host's; and
pip and HTTP read the host's settings for mirrors and proxies, as a build behind a proxy would.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from docker.utils.build import exclude_paths

from tests.containers.dockerfile import (
    BuildStage,
    Instruction,
    ancestry,
    read_dockerfile,
    variables,
    words,
)

DEBIAN = "http://deb.debian.org"
SHARED_MEMORY = "64m"
"""What Docker gives a container without --shm-size."""
DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
TIMEOUT_S = 3600.0
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
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")


@dataclass
class Image:
    """What a build has come to: its layers, oldest first, and what ENV, USER and WORKDIR say."""

    layers: list[Path]
    environment: dict[str, str] = field(
        default_factory=lambda: {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        }
    )
    user: str = "0:0"
    directory: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    steps: dict[Path, str] = field(default_factory=dict)


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
    _check(subprocess.run(command, capture_output=True, text=True, check=False))
    (folder / "etc/apt/sources.list").write_text(
        f"deb {DEBIAN}/debian {suite} main\n"
        f"deb {DEBIAN}/debian {suite}-updates main\n"
        f"deb {DEBIAN}/debian-security {suite}-security main\n"
    )
    (folder / "etc/apt/apt.conf.d/docker-clean").write_text(APT_CLEANS)
    (folder / "etc/dpkg/dpkg.cfg.d/docker").write_text(SLIM)
    subprocess.run(["chroot", folder, "apt-get", "clean"], check=True)
    return folder


def enter(
    image: Image,
    command: Sequence[str],
    *,
    upper: Path | None = None,
    volumes: Mapping[str, Path] | None = None,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> str:
    """Return the output of a command in the image; its failure is a failure of the test.

    With `upper` it writes into that layer. Without, the root is read-only, as in compose.yaml:
    only `volumes` (container path to folder) and /tmp can be written.
    """
    done = attempt(image, command, upper=upper, volumes=volumes, environment=environment, user=user)
    return _check(done)


def attempt(
    image: Image,
    command: Sequence[str],
    *,
    upper: Path | None = None,
    volumes: Mapping[str, Path] | None = None,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Return how a command ended in the image, as `enter` runs it."""
    top = image.layers[-1] if upper is None else upper
    point = merged(top)
    uid, _, gid = (user or image.user).partition(":")
    variables_set = {**image.environment, **(environment or {})}
    if upper is not None:
        variables_set |= {name: os.environ[name] for name in _PROXIES if name in os.environ}
        variables_set["PIP_CONFIG_FILE"] = "/mnt/pip.conf"
    mounts = [
        mount_command([each for each in image.layers if each != upper], point, upper),
        f"mount -t proc proc {point}/proc",
        f"mount -t tmpfs -o mode=755 tmpfs {point}/dev",
        f"mkdir {point}/dev/shm",
        f"mount -t tmpfs -o mode=1777,size={SHARED_MEMORY} tmpfs {point}/dev/shm",
    ]
    for device in DEVICES:
        node = f"{point}/dev/{device}"
        mounts += [f"touch {node}", f"mount --bind /dev/{device} {node}"]
    mounts += [f"ln -s /proc/self/fd {point}/dev/fd"]
    if upper is None:
        mounts += [f"mount -t tmpfs -o mode=1777 tmpfs {point}/tmp"]
    else:
        mounts += [f"mount --bind -o ro /etc/resolv.conf {point}/etc/resolv.conf"]
        mounts += _pip_mounts(point)
    for target, folder in (volumes or {}).items():
        mounts += [f"mount --bind {folder} {point}{target}"]
    directory = image.directory
    mounts += [f"mkdir -p {point}{directory}"] if upper is not None else []
    chroot = ["chroot", f"--userspec={uid}:{gid or uid}", "--groups=", str(point)]
    settings = [f"{name}={value}" for name, value in variables_set.items()]
    program = [*chroot, "/usr/bin/env", "-i", "-C", directory, *settings, *command]
    return namespace(mounts, program)


def mount_command(layers: Sequence[Path], point: Path, upper: Path | None = None) -> str:
    """Return the shell command that mounts layers at `point`; read-only without an upper one."""
    lower = ":".join(str(each) for each in reversed(layers))
    if upper is not None:
        work = upper.parent / f"work-{upper.name}"
        return (
            f"mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work} {point}"
        )
    assert len(layers) > 1
    return f"mount -t overlay overlay -o ro,lowerdir={lower} {point}"


def merged(layer: Path) -> Path:
    """Return the folder at which a layer is seen with those below it."""
    return layer.parent / f"merged-{layer.name}"


def in_namespace(commands: Sequence[str]) -> None:
    """Run shell commands in mounts and process ids of their own, which end with them."""
    _check(namespace(commands, ["true"]))


def namespace(mounts: Sequence[str], program: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Return how `program` ended after the shell commands `mounts`, all in its own namespaces."""
    script = "set -e\n" + "\n".join(mounts) + '\nexec "$@"'
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc"]
    return subprocess.run(
        [*unshare, "sh", "-c", script, "sh", *program],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
        check=False,
    )


def layer_sizes(image: Image) -> list[tuple[str, int]]:
    """Return each step of the final stage that added files, with their bytes."""
    sizes = []
    for layer in image.layers:
        files = [path for path in layer.rglob("*") if path.is_file() and not path.is_symlink()]
        links = {(path.stat().st_dev, path.stat().st_ino): path.stat().st_size for path in files}
        sizes.append((image.steps[layer], sum(links.values())))
    return sizes


def _pip_mounts(point: Path) -> list[str]:
    """Return what gives pip inside the settings that it has outside, mirrors on disk included."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(re.findall(r"^(?:global|:env:)\.(\S+?)='(.*)'$", listed, flags=re.MULTILINE))
    mounts = [f"mount -t tmpfs tmpfs {point}/mnt"]
    lines = ["[global]"]
    for name, value in settings.items():
        for path in sorted(set(re.findall(r"(?<![\w.:/])(?:file://)?(/[^\s]+)", value))):
            # The pages of an index on disk point to files beside its folder.
            whole = Path(path).parent if Path(path).is_dir() else Path(path)
            make = f"mkdir -p {point}/mnt{Path(path).parent}"
            make += "" if Path(path).is_dir() else f"; touch {point}/mnt{path}"
            mounts += [make, f"mount --bind -o ro {whole} {point}/mnt{whole}"]
            value = value.replace(path, f"/mnt{path}")
        lines.append(f"{name} = {value}")
    quoted = "\\n".join(lines)
    return [*mounts, f"printf '{quoted}\\n' > {point}/mnt/pip.conf"]


def _suite(image: str) -> str:
    match = re.match(r"debian:([a-z]+)-\d+-slim@sha256:", image)
    assert match is not None, image
    return match[1]


def _check(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout
