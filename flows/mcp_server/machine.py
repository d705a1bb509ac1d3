"""What the machine has and how busy it is: cores, memory, disk, GPUs (Linux)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

from flows.gpus import ask_driver

_MEMINFO: Final = Path("/proc/meminfo")


def machine_state(folder: Path) -> dict[str, Any]:
    """Return cores, load, memory and GPUs of this machine, and the disk that `folder` is on."""
    disk = shutil.disk_usage(folder)
    return {
        "cpu_cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_bytes": _memory("MemTotal"),
        "memory_available_bytes": _memory("MemAvailable"),
        "disk_bytes": disk.total,
        "disk_free_bytes": disk.free,
        "gpus": gpus(),
    }


def gpus() -> list[dict[str, Any]]:
    """Return the NVIDIA GPUs of this machine as its driver's tool sees them; none without it."""
    return [
        {"name": row[0], "memory_mib": row[1], "used_mib": row[2], "busy_percent": row[3]}
        for row in ask_driver(["name", "memory.total", "memory.used", "utilization.gpu"])
    ]


def _memory(field: str) -> int | None:
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) << 10  # kB, by which Linux means KiB
    return None
