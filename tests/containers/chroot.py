"""Run commands in an image that is a stack of layers, without Docker.

The layers are mounted over each other with overlayfs and entered with chroot, with mounts, process
ids and shared memory of their own, which end with the command. Needs root.

What differs from Docker: no user namespace, no seccomp, no limits; the network is the host's; and
while an image is built, pip and HTTP read the host's settings for mirrors and proxies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHARED_MEMORY = "64m"
"""What Docker gives a container without --shm-size."""
DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
TIMEOUT_S = 3600.0
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


def can_build() -> bool:
    """Return whether this machine lets us: root, debootstrap, overlayfs, and the mounts of a root.

    A container of a build service is often root without the right to mount.
    """
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        layers = [Path(folder) / str(number) for number in range(3)]
        for each in (*layers, *map(merged, layers), Path(folder) / "work-2"):
            each.mkdir()
        (layers[0] / "proc").mkdir()
        point = merged(layers[2])
        mounts = [mount_command(layers[:2], point, layers[2]), f"mount -t proc proc {point}/proc"]
        return namespace(mounts, ["true"]).returncode == 0


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
    return check(done)


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
    check(namespace(commands, ["true"]))


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


def check(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command said; its failure is a failure of the test."""
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


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
